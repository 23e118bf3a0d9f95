"""What is in use: a shared lock on an entry's manifest, or on a folder, which the kernel drops when its process ends.

The lock is on the thing itself, so nothing has to be cleaned up, it moves along when the thing is renamed, and it works
where the cache is mounted read-only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unified_backend.cache.files import clear, open_plain

__all__ = ["Hold", "remove_abandoned", "unheld"]

_ABANDONED_SECONDS = 60.0  # a folder is taken hold of at once after it was made: this is plenty


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
        handle = open_plain(path)
        try:
            # A filesystem without locks is left with the eviction order alone to protect what is in use.
            with suppress(OSError):
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    return None
            if _is_at(handle, path):
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
    handle = open_plain(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # Somebody may have removed it since it was opened, and another have published anew: that one is not locked.
        if not _is_at(handle, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield True
    finally:
        os.close(handle)


def remove_abandoned(folders: Iterable[Path], older_than: float | None = None) -> None:
    """Remove the folders that nobody holds any more: their makers are dead. What cannot be removed stays.

    Args:
        older_than: seconds, a minute if not given; 0 for folders held for as long as they have had their names.
    """
    least = _ABANDONED_SECONDS if older_than is None else older_than
    for folder in folders:
        with suppress(OSError):
            if time.time() - folder.lstat().st_mtime < least:
                continue
            with unheld(folder) as abandoned:
                if abandoned:
                    clear(folder)


def _is_at(handle: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(handle), path.lstat())
