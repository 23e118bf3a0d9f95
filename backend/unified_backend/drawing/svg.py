"""What all pictures share: the style, light and dark, the frame around the parts, and texts that keep their width."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

__all__ = ["CHARACTER", "document", "fitted", "text", "width_of"]

CHARACTER = 7.3  # pixels that a character of `.tensor` and `.title` takes at most: 12 px of a monospace font
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1b1f24 }
  .kind, .tensor { font-size: 12px; fill: #57606a }
  .tensor { font-family: ui-monospace, monospace }
  .title { font: bold 12px ui-monospace, monospace }
  rect { fill: #f6f8fa; stroke: #57606a; rx: 6 }
  rect.model { fill: #ddf4ff; stroke: #0969da }
  rect.end { fill: #fff8c5; stroke: #7d4e00; rx: 18 }
  path { fill: none; stroke: #57606a; marker-end: url(#arrow) }
  path.trunk { marker-end: none } #arrow path { fill: #57606a; stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .kind, .tensor { fill: #9198a1 } rect { fill: #161b22; stroke: #9198a1 }
    rect.model { fill: #0c2d6b; stroke: #58a6ff } rect.end { fill: #3b2300; stroke: #d29922 }
    path { stroke: #9198a1 } #arrow path { fill: #9198a1 }
  }
"""
_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="trunk" d="M0 0 L8 4 L0 8 z"/></marker></defs>'
)


def document(label: str, width: float, height: float, parts: Sequence[str]) -> str:
    """The picture.

    Args:
        label: says what it shows, to those who cannot see it.
        parts: elements, in the order in which they are drawn.
    """
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{escape(_allowed(label))}">'
    )
    return "\n".join([head, f"<style>{_STYLE}</style>", _ARROW, *parts, "</svg>"]) + "\n"


def text(content: str) -> str:
    """Text as it may stand in an element."""
    return escape(_allowed(content), quote=False)


def width_of(content: str) -> float:
    """Pixels of a text of class `tensor` or `title`, at most."""
    return CHARACTER * sum(_cells(letter) for letter in content)


def fitted(content: str, width: float, keep_end: bool = False) -> str:
    """As much of a text as a width holds; with `keep_end` the end of it, which tells more of a path."""
    content = _allowed(content)
    if width_of(content) <= width:
        return content
    letters = content[::-1] if keep_end else content
    kept, room = "", width / CHARACTER - 1
    for letter in letters:
        room -= _cells(letter)
        if room < 0:
            break
        kept += letter
    return f"…{kept[::-1]}" if keep_end else f"{kept}…"


def _cells(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _allowed(content: str) -> str:
    """Without what XML has no place for; names out of a model may hold anything."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in content)
