"""Large objects: fetched in parts at once, where a fetch that was cut off goes on, and checked when whole."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from unified_backend.cache.files import sha256_of
from unified_backend.cache.flight import one_at_a_time
from unified_backend.cache.manifest import DamagedError, FileRecord
from unified_backend.cache.remote.objects import Objects

__all__ = ["fetch"]

logger = logging.getLogger(__name__)

_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 4
_REPORT_SECONDS = 10.0
_ABANDONED_SECONDS = 3 * 86400.0  # nobody came back to go on with it


def fetch(objects: Objects, path: str, record: FileRecord, target: Path, partial: Path) -> None:
    """Fetch an object into a file.

    Args:
        record: the size and digest that it must have.
        target: the file; its folder exists.
        partial: folder on the same disk where parts that arrived outlive this process, so that the next one goes on.

    Raises:
        RemoteError: the store does not answer, or has no such object; what arrived is kept.
        DamagedError: the object is not what the record says; nothing is kept.
        OSError: the disk is full or cannot be written.
    """
    partial.mkdir(parents=True, exist_ok=True)
    _sweep(partial)
    half, journal = partial / record.sha256, partial / f"{record.sha256}.parts"
    with one_at_a_time(partial, record.sha256, f"fetch={record.sha256[:12]}"):
        resumed = journal.exists()
        whole = _fetched(objects, path, record, half, journal)
        if resumed and not whole:
            # What an earlier process noted as arrived may never have reached the disk: once more, from nothing.
            whole = _fetched(objects, path, record, half, journal)
        if not whole:
            raise DamagedError(f"the object {path} has the wrong SHA-256")
        half.rename(target)


def _sweep(partial: Path) -> None:
    """Remove what was fetched in part, long ago; nothing else ever would."""
    for left in partial.iterdir():
        with contextlib.suppress(OSError):
            if left.suffix != ".lock" and time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()


def _fetched(objects: Objects, path: str, record: FileRecord, half: Path, journal: Path) -> bool:
    """Fetch the parts that the journal does not list; whether the file then has the right digest. If not it is gone."""
    handle = os.open(half, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.ftruncate(handle, record.size)
        _fetch_parts(objects, path, record.size, handle, journal)
    finally:
        os.close(handle)
    whole = sha256_of(half) == record.sha256
    journal.unlink(missing_ok=True)
    if not whole:
        half.unlink()
    return whole


def _fetch_parts(objects: Objects, path: str, size: int, handle: int, journal: Path) -> None:
    arrived = set(journal.read_text().split()) if journal.exists() else set()
    missing = [start for start in range(0, size, _PART_BYTES) if str(start) not in arrived]
    began = reported = time.monotonic()
    pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="unified-fetch")
    try:
        pending = {pool.submit(_fetch_part, objects, path, start, size, handle) for start in missing}
        with journal.open("a") as notes:
            while pending:
                done, pending = wait(pending, _REPORT_SECONDS, FIRST_COMPLETED)
                _note(done, notes.fileno())
                if time.monotonic() - reported >= _REPORT_SECONDS:
                    reported = time.monotonic()
                    share = 1 - len(pending) * _PART_BYTES / max(size, 1)
                    logger.info("fetching object=%s share=%.2f seconds=%.0f", path[:24], share, reported - began)
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch_part(objects: Objects, path: str, start: int, size: int, handle: int) -> int:
    data = objects.get_range(path, start, min(_PART_BYTES, size - start))
    at = start
    while data:
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written
    return start


def _note(done: set[Future[int]], journal: int) -> None:
    """Write down the parts that arrived, before the first failure among them is raised."""
    failures = [error for future in done if (error := future.exception())]
    os.write(journal, "".join(f"{future.result()}\n" for future in done if not future.exception()).encode())
    if failures:
        raise failures[0]
