"""Matplotlib, as a page uses it: quiet, without a screen, text as text, and colours that are the page's variables."""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from unified_backend.reports.palette import sentinel, with_variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SIZE", "WIDTH", "Drawing", "blank", "drawn", "panel", "styled", "text_width", "wrapped"]

WIDTH = 330.0  # as wide as a phone shows without shrinking; wider screens enlarge it
SIZE = 11.5  # of all text

_STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "triton-unified",
    "text.parse_math": False,  # a model may be named a$b$
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so that all machines measure alike; wider than most
    "font.size": SIZE,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.edgecolor": sentinel("soft"),
    "axes.labelcolor": sentinel("ink"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": sentinel("grid"),
    "grid.linewidth": 0.8,
    "text.color": sentinel("ink"),
    "xtick.color": sentinel("soft"),
    "ytick.color": sentinel("soft"),
    "xtick.labelcolor": sentinel("ink"),
    "ytick.labelcolor": sentinel("ink"),
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.5,
}


@dataclass(frozen=True)
class Drawing:
    """An SVG element, and what it shows in words, for those who do not see it."""

    svg: str
    says: str


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib with this style and no other: neither the user's matplotlibrc nor what a notebook has set."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells when it lists fonts
    try:
        with _own_folder():
            import matplotlib
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _own_folder() -> Iterator[None]:
    """While it is imported, it makes folders for its settings and its list of fonts: not in the user's home."""
    if "MPLCONFIGDIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="triton-unified-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            import matplotlib
            import matplotlib.font_manager

            matplotlib.get_configdir()
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def blank(height: float, width: float = WIDTH) -> Figure:
    """A figure of so many pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def panel(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Axes that leave so many pixels free at each side."""
    width, height = (72 * size for size in figure.get_size_inches())
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
    axes.patch.set_visible(False)
    axes.tick_params(length=3)
    axes.xaxis.set_gid("x-axis")
    axes.yaxis.set_gid("y-axis")
    return axes


def drawn(figure: Figure, key: str, says: str) -> Drawing:
    """
    Args:
        key: unique in the page; what the figure's parts are named by their `gid` gets it in front.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return Drawing(_inline(out.getvalue(), key), says)


def _inline(svg: str, key: str) -> str:
    """A file's SVG as an element of a page: ids that are its own, no style for other elements, no fixed size."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    # Only tags: text between them is what a model is named, and may look like anything.
    svg = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], key), svg)
    return re.sub(r">\s*\n\s*<", ">\n<", svg)


def _tag(tag: str, key: str) -> str:
    tag = re.sub(r' id="[A-Za-z.]+[\d.]*_\d+"| transform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r' id="', f' id="{key}-', tag)
    tag = tag.replace('xlink:href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
    tag = re.sub(r"font: ((?:bold |[67]00 )?)([\d.]+)px [^;\"]*", _font, tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)  # hundredths of a pixel
    return with_variables(re.sub(r"\s+", " ", tag))


def _font(found: re.Match[str]) -> str:
    """Matplotlib's size and weight, in the page's family."""
    return f"font-size: {found[2]}px" + ("; font-weight: 600" if found[1] else "")


@cache
def text_width(text: str) -> float:
    """Pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=SIZE), ismath=False)
    return float(width)


def wrapped(text: str, width: float) -> list[str]:
    """Lines of at most so many pixels, broken after spaces and punctuation, and anywhere if need be."""
    lines = [""]
    for word in _words(text, width):
        if lines[-1] and text_width(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def _words(text: str, width: float) -> Sequence[str]:
    words = []
    for word in re.findall(r"[^\s/_.,:-]+[\s/_.,:-]?|[\s/_.,:-]", text):
        while len(word) > 1 and text_width(word.rstrip()) > width:
            fits = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or text_width(word[:end]) <= width)
            words.append(word[:fits])
            word = word[fits:]
        words.append(word)
    return words
