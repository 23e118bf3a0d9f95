"""The SOURCE of a command: a model file or its folder, as a person names it."""

from __future__ import annotations

from pathlib import Path

from unified_backend.errors import Refused
from unified_backend.formats.checkpoint import graph_of

__all__ = ["named"]


def named(source: Path) -> Path:
    """The file or folder that a person means, with a name that messages can call it by.

    A checkpoint may be named by its prefix, as TensorFlow does it, or by any of its files; a folder as `.`.

    Raises:
        Refused: there is no such file or folder.
    """
    found = graph_of(source)
    if not found.exists():
        raise Refused(f"{source} is not there", "there is no such file or folder", "Name a model file or its folder")
    return found.resolve() if found.name in ("", "..") else found
