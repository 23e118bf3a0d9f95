"""What a native library prints, for one that tells nobody else what it cannot do."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["natives_aside", "printed"]


@contextmanager
def printed() -> Iterator[list[str]]:
    """Lines that this process's standard output and error got meanwhile, filled in at the end; nothing else gets them.

    For a process of its own: descriptors belong to all threads.
    """
    lines: list[str] = []
    with tempfile.TemporaryFile() as file:
        _flush()
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in kept:
                os.dup2(file.fileno(), number)
            yield lines
        finally:
            _flush()
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            lines += [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]


def natives_aside() -> None:
    """From now on, what native libraries print goes to standard error: a command's own output is for other programs."""
    _flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
