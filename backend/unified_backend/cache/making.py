"""Calling a maker: its failures as the cache's errors, and a folder to work in where the cache cannot be written."""

from __future__ import annotations

import atexit
import errno
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unified_backend.cache.holds import Hold, remove_abandoned
from unified_backend.errors import CacheError, CacheFullError

__all__ = ["Make", "called", "private_folder"]

Make = Callable[[Path], Mapping[str, Any]]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a file system that ends at 4 GB a file
_PREFIX = "triton-unified-made-"
_SHARED_MEMORY = "/dev/shm"  # Triton's stubs need it, so that it is there where nothing else can be written


def called(make: Make, folder: Path) -> dict[str, Any]:
    """The facts that a maker hands back; its own OSErrors are its failure, not the cache's.

    Raises:
        CacheFullError: it ran out of room.
        CacheError: it could not write, or read, for another reason.
    """
    try:
        return dict(make(folder))
    except OSError as error:
        kind = CacheFullError if error.errno in _FULL else CacheError
        raise kind(
            "a cache entry could not be made",
            f"{error.filename or folder}: {error.strerror or error}",
            "Make room, or choose another folder with TRITON_UNIFIED_CACHE",
        ) from error


def private_folder() -> Path:
    """A new folder of this process alone, removed when it ends.

    Raises:
        CacheFullError: no temporary folder can be written.
    """
    try:
        return Path(tempfile.mkdtemp(dir=_root()))
    except OSError as error:
        raise CacheFullError(
            "a cache entry could not be made",
            f"neither the cache nor a temporary folder can be written ({error.strerror or error})",
            "Choose a folder with TRITON_UNIFIED_CACHE, or a temporary one with TMPDIR",
        ) from error


@functools.cache
def _root() -> Path:
    try:
        root = Path(tempfile.mkdtemp(prefix=_PREFIX))
    except OSError:
        root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_SHARED_MEMORY))
    Hold.take(root)  # and never released: its end is the process's
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    remove_abandoned(root.parent.glob(f"{_PREFIX}*"))
    return root
