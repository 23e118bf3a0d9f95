"""What a library says of a damaged file, short enough for a message."""

from __future__ import annotations

__all__ = ["excerpt"]

_MOST_READ, _MOST_QUOTED = 100_000, 200  # characters


def excerpt(error: Exception | str) -> str:
    """What a library says of a file, which may quote kilobytes of it, as one short line: its begin and its end."""
    words = " ".join((str(error) or type(error).__name__)[:_MOST_READ].split())
    if len(words) > _MOST_QUOTED:
        words = f"{words[: _MOST_QUOTED // 2]} ... {words[5 - _MOST_QUOTED // 2 :]}"
    return "".join(sign if sign.isprintable() else "?" for sign in words)
