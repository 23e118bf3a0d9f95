"""Checks of the cache directory: where it lies, whether it can be written, whether locks work there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from unified_backend.doctor.finding import Finding, failed, ok, warning

__all__ = ["check_locks", "check_place", "check_writable"]

_GIB = 2**30
_ENOUGH = 2 * _GIB
_CHOOSE = "Name another directory with the environment variable TRITON_UNIFIED_CACHE"
_SECOND_PROCESS = """
import fcntl, sys
with open(sys.argv[1]) as handle:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(42)
"""
_WAS_LOCKED_OUT = 42


def check_place(cache: Path, repository: Path | None) -> Finding:
    """Whether the cache lies outside the repository, where it would be taken for a model or cause endless reloads."""
    if repository is not None and cache.resolve().is_relative_to(repository.resolve()):
        return failed(
            f"{cache} is inside the repository: Triton takes it for a model, and in poll mode every write reloads",
            _CHOOSE,
        )
    return ok(str(cache))


def check_writable(cache: Path) -> Finding:
    """Whether entries can be written; where they cannot, every start converts and builds again."""
    try:
        with tempfile.TemporaryDirectory(dir=_existing(cache)) as folder:
            (Path(folder) / "probe").write_bytes(b"probe")
        free = shutil.disk_usage(_existing(cache)).free
    except OSError as error:
        return failed(f"{cache} cannot be written: {error.strerror}; every start would build again", _CHOOSE)
    if free < _ENOUGH:
        return warning(f"{free / _GIB:.1f} GiB free", "Make room: an engine is about as large as its model")
    return ok(f"writable, {free / _GIB:.0f} GiB free")


def check_locks(cache: Path) -> Finding:
    """Whether a lock taken by one process there keeps out another (it does not on some network file systems)."""
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(cache)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # -I: nothing of this directory or of PYTHONPATH is needed.
            second = subprocess.run([sys.executable, "-I", "-c", _SECOND_PROCESS, file.name], timeout=30, check=False)
    except OSError as error:
        return warning(f"no lock can be taken in {cache}: {error.strerror}; two processes may build at once", _CHOOSE)
    if second.returncode != _WAS_LOCKED_OUT:
        return warning(f"a lock in {cache} does not keep out a second process: two may build at once", _CHOOSE)
    return ok("a second process waits for the first")


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists: a doctor makes no directories."""
    # Not Path.exists, which raises where a folder above may not be entered.
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110
