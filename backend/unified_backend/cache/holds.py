"""What is in use: a shared lock on an entry's manifest, or on a folder, which the kernel drops when its process ends.

The lock is on the thing itself, so nothing has to be cleaned up, it moves along when the thing is renamed, and it works
where the cache is mounted read-only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Hold", "unheld"]


class Hold:
    """One process's use of an entry or a folder, until `release` or the end of the process."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    @classmethod
    def take(cls, path: Path) -> Hold | None:
        """Hold the entry of a manifest, or a folder; None if it is just being removed.

        Raises:
            OSError: there is no such file, or it cannot be opened.
        """
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A filesystem without locks is left with the eviction order alone to protect what is in use.
            with suppress(OSError):
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    return None
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return cls(handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None

    def read(self) -> bytes:
        """The bytes of the file that is held."""
        if self._handle is None:
            raise ValueError("released")
        return os.pread(self._handle, os.fstat(self._handle).st_size, 0)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def unheld(path: Path) -> Iterator[bool]:
    """Whether no live process holds this manifest or folder; inside the block none can start to.

    Raises:
        OSError: it cannot be opened, or its filesystem has no locks.
    """
    # A file is opened for writing, as network filesystems want for an exclusive lock.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
