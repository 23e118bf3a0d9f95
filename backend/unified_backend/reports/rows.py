"""Plots of rows: each with its name and its value above a bar or marks, so that long names take no room from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unified_backend.reports.drawing import WIDTH, blank, panel, text_width, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BAND", "Row", "bar", "rows"]

BAND = 11.0  # pixels, of a bar
_LINE = 14.0
_GAP = 11.0
_AFTER_HEAD = 4.0
_SIDE = 10.0
_AXIS = 42.0
_TIGHT = 8.0


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        name: above the bar, in as many lines as it needs.
        value: above the bar's end.
        draw: draws the bar or marks; gets the axes and the middle of the row's band.
        head: a line of its own before, for what begins here.
    """

    name: str
    value: str
    draw: Callable[[Axes, float], None]
    head: str = ""


def bar(axes: Axes, middle: float, left: float, width: float, gid: str, **style: object) -> None:
    """A bar in a row's band; many times as quick as `Axes.barh`, which looks after units and legends."""
    from matplotlib.patches import Rectangle

    axes.add_artist(Rectangle((left, middle - BAND / 2), width, BAND, gid=gid, **style))  # type: ignore[arg-type]


def rows(entries: Sequence[Row], label: str | None) -> tuple[Figure, Axes]:
    """The figure and its axes, of which the caller sets the x axis.

    Args:
        label: of the x axis; None for a plot without one.
    """
    inner = WIDTH - 2 * _SIDE
    lines = [wrapped(row.name, inner - text_width(row.value) - 12) for row in entries]
    heads = [wrapped(row.head, inner) if row.head else [] for row in entries]
    used = sum(_LINE * (len(one) + len(head)) + BAND + _GAP for one, head in zip(lines, heads, strict=True))
    used += sum(_GAP + _AFTER_HEAD for head in heads if head)
    bottom = _AXIS if label else _TIGHT
    figure = blank(used + bottom + 2)
    axes = panel(figure, _SIDE, 2, _SIDE, bottom)
    axes.set_ylim(used, 0)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    if label:
        axes.set_xlabel(label)
    else:
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
    place = axes.get_yaxis_transform()  # x in parts of the width, y in pixels from the top
    y = 0.0
    for row, name, head in zip(entries, lines, heads, strict=True):
        y += _GAP if head else 0.0
        for line in head:
            y += _LINE
            axes.text(0, y, line, transform=place, va="baseline", fontweight="bold")
        y += _AFTER_HEAD if head else 0.0
        axes.text(1, y + _LINE, row.value, transform=place, ha="right", va="baseline")
        for line in name:
            y += _LINE
            axes.text(0, y, line, transform=place, va="baseline")
        row.draw(axes, y + 5 + BAND / 2)
        y += BAND + _GAP
    return figure, axes
