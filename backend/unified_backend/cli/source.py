"""The SOURCE of a command: a model file or its folder, as a person names it, and the model in it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from unified_backend.cache import FileMemo
from unified_backend.errors import Refused, SourceError
from unified_backend.formats import Source, find_source
from unified_backend.formats.checkpoint import graph_of
from unified_backend.formats.keras_hdf5 import KerasHdf5, is_hdf5

__all__ = ["folder_of", "found_in", "named"]


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


def folder_of(source: Path) -> Path:
    """The folder that a model's files are in: the one named, or that of the file named."""
    return source if source.is_dir() else source.parent


def found_in(source: Path) -> Source:
    """The one model that a file or folder is; no cache is needed, or touched.

    Raises:
        SourceError: there is none, there are several, or it is broken.
    """
    chosen = None if source.is_dir() else source.name
    try:
        with tempfile.TemporaryDirectory(prefix="triton-unified-") as notes:
            return find_source(source.name, folder_of(source), FileMemo(Path(notes)), chosen)
    except SourceError:
        # Weights alone are no model that could be found, and tell their names and shapes all the same.
        if chosen is not None and is_hdf5(source):
            return Source(source.name, KerasHdf5.name, source, (source,))
        raise
