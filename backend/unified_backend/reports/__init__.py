"""What a benchmark measured, as one HTML file: nothing to install, to start or to load from anywhere to read it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.cache.files import write_whole
from unified_backend.errors import Refused

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


def write(result: Mapping[str, Any], path: Path) -> None:
    """Draw what `triton-unified bench` saved; the same result gives the same bytes.

    Args:
        result: the JSON that `bench` saves, as a mapping.
        path: of the HTML file; one that is there is replaced, and its folder is made.

    Raises:
        Refused: `result` is no result of `bench`, the file cannot be written, or an extra is not installed.
    """
    require()
    from unified_backend.reports.page import page
    from unified_backend.reports.result import read

    text = page(read(result))
    try:
        write_whole(path, text)
    except OSError as error:
        raise Refused(
            f"{path} cannot be written", error.strerror or str(error), "Name a file in a folder that can be written"
        ) from None
