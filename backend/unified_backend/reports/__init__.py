"""What a benchmark measured, as one HTML file: nothing to install, to start or to load from anywhere to read it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from unified_backend.cache.files import write_whole
from unified_backend.errors import Refused
from unified_backend.measuring.result import Result

__all__ = ["require", "write"]


def require() -> None:
    """
    Raises:
        Refused: what reports are drawn with is not installed.
    """
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(
            "no report can be drawn",
            f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} not installed",
            "Run `pip install 'triton-unified-backend[report]'`",
        )


def write(result: Result, path: Path) -> None:
    """Draw what `triton-unified bench` measured; the same result gives the same bytes.

    Args:
        path: of the HTML file; one that is there is replaced, and its folder is made.

    Raises:
        Refused: the file cannot be written, or an extra is not installed.
    """
    require()
    from unified_backend.reports.page import page

    text = page(result)
    try:
        write_whole(path, text)
    except OSError as error:
        raise Refused(
            f"{path} cannot be written", error.strerror or str(error), "Name a file in a folder that can be written"
        ) from None
