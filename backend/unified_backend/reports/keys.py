"""The marks that stand before names in tables and legends: drawn as they are drawn in the plots."""

from __future__ import annotations

import re

from unified_backend.reports.drawing import blank, drawn, panel
from unified_backend.reports.palette import Look
from unified_backend.reports.rows import bar
from unified_backend.reports.shares import style_of

__all__ = ["of_part", "of_variant"]


def of_variant(look: Look, key: str) -> str:
    """A `<symbol>` of this id."""
    figure = blank(14, 40)
    axes = panel(figure, 0, 0, 0, 0)
    axes.set_axis_off()
    axes.set(xlim=(0, 40), ylim=(0, 14))
    axes.plot((1, 39), (7, 7), color=look.colour, linestyle=look.dashes)
    axes.plot((20,), (7,), color=look.colour, marker=look.marker, linestyle="none")
    return _symbol(drawn(figure, key, "").svg, key)


def of_part(part: str) -> str:
    """A `<symbol>` whose id is `part-NAME`."""
    figure = blank(14, 24)
    axes = panel(figure, 0, 0, 0, 0)
    axes.set_axis_off()
    axes.set(xlim=(0, 24), ylim=(0, 14))
    bar(axes, 7, 0, 24, "bar", **style_of(part))
    return _symbol(drawn(figure, f"part-{part}", "").svg, f"part-{part}")


def _symbol(svg: str, key: str) -> str:
    svg = re.sub(r'<svg viewBox="([^"]*)" aria-hidden="true">', rf'<symbol id="{key}" viewBox="\1">', svg, count=1)
    return svg.replace("</svg>", "</symbol>")
