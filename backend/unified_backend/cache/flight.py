"""One maker at a time: a lock a key across the threads, processes and servers of one disk."""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["being_made", "locks_missing", "one_at_a_time"]

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0
# What the filesystems without locks answer (some NFS and FUSE mounts).
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def one_at_a_time(folder: Path, name: str, what: str) -> Iterator[None]:
    """Hold the lock `name` in `folder`; whoever waits says every ten seconds for whom.

    The kernel frees it when its holder dies, so there is no stale lock to break. On a filesystem that has no locks the
    block runs all the same, after a warning: what it does must be right then too, if only slower.

    Args:
        what: is done under the lock, for the log (`kind=engine key=3fa91c`).

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A soft lock would have to guess when its holder is dead.
    lock = FileLock(folder / f"{name}.lock", fallback_to_soft=False)
    owner = folder / f"{name}.owner"
    began = time.monotonic()
    locked = False
    while not locked:
        try:
            lock.acquire(timeout=_REPORT_SECONDS)
            locked = True
        except Timeout:
            logger.info("waiting %s maker=%s seconds=%.0f", what, _who(owner), time.monotonic() - began)
        except OSError as error:
            if not locks_missing(folder, error):
                raise
            break
    try:
        if locked:
            with suppress(OSError):  # who waits is told less
                owner.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        if locked:
            lock.release()


def being_made(folder: Path, name: str) -> bool:
    """Whether the lock `name` in `folder` is held by anybody, this process included; False where locks do not work."""
    path = folder / f"{name}.lock"
    if not path.exists():
        return False
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError as error:
        return not locks_missing(folder, error)
    lock.release()
    return False


def locks_missing(folder: Path, error: OSError) -> bool:
    """Whether a lock could not be taken because the filesystem has none; the log says so once."""
    if error.errno not in _NO_LOCKS:
        return False
    _warn_no_locks(folder, error.strerror or str(error))
    return True


@functools.cache
def _warn_no_locks(folder: Path, reason: str) -> None:
    logger.warning('no locks folder=%s reason="%s" next="two processes may make one entry"', folder, reason)


def _who(owner: Path) -> str:
    try:
        return f'"{owner.read_text()}"'
    except OSError:
        return "unknown"
