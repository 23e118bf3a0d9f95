"""Entries by key: made once, published whole or not at all, checked before use."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unified_backend.cache.memo import FileMemo
from unified_backend.errors import CacheError

__all__ = ["Cache", "Entry", "Key"]

logger = logging.getLogger(__name__)

SCHEMA = 1
_MANIFEST = "manifest.json"
_WAIT_REPORT_SECONDS = 10.0

Make = Callable[[Path], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Key:
    """Everything an entry's bytes depend on; never a path, a time or a host's name.

    Attributes:
        kind: what the entry is (`canonical`, `batching`, `engine`).
        fields: JSON values; their order does not matter.
    """

    kind: str
    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of kind, fields and schema version, in hex."""
        text = json.dumps(
            {"schema": SCHEMA, "kind": self.kind, "fields": dict(self.fields)},
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )
        return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cached artefact.

    Attributes:
        path: the folder that holds its files; never written to again.
        facts: what its maker handed back (JSON values).
        hit: whether it was there already.
    """

    path: Path
    facts: Mapping[str, Any]
    hit: bool


class Cache:
    """A store on one disk, shared by the threads, processes and servers of the host.

    Where the folder cannot be written, entries already there are served and new ones live in a private temporary
    folder until the process ends: slower, and never wrong.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.memo = FileMemo(root / "memo")

    def get_or_make(self, key: Key, make: Make) -> Entry:
        """The entry of this key, made if it is missing; one maker a key at a time on the host.

        Args:
            key: what the entry depends on.
            make: called with an empty folder; writes the entry's files there and returns its facts. What it raises
                is raised and nothing is published.
        """
        place = self.root / key.kind / key.digest[:2] / key.digest
        if entry := self._read(place):
            return entry
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with self._one_maker(key):
                return self._read(place) or self._make(key, place, make)
        except OSError as error:
            logger.warning('cache not writable folder=%s reason="%s" made=unshared', self.root, error.strerror or error)
            folder = Path(tempfile.mkdtemp(dir=_private_folder()))
            return Entry(folder, _made(folder, make), hit=False)

    def _make(self, key: Key, place: Path, make: Make) -> Entry:
        aside_root = self.root / "making"
        aside_root.mkdir(exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f"{key.digest[:12]}-{os.getpid()}-", dir=aside_root))
        try:
            began = time.monotonic()
            facts = _made(aside, make)
            manifest = {
                "schema": SCHEMA,
                "kind": key.kind,
                "key": dict(key.fields),
                "facts": facts,
                "files": {path.relative_to(aside).as_posix(): _describe(path) for path in _files(aside)},
                "made": {"host": socket.gethostname(), "unix_time": int(time.time()), "seconds": _since(began)},
            }
            (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1))
            _sync(aside)
            try:
                aside.rename(place)
            except OSError:
                # Only where locks do not work (some network filesystems): another maker was quicker.
                if entry := self._read(place):
                    return entry
                raise
            _sync_folder(place.parent)
            return Entry(place, facts, hit=False)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _read(self, place: Path) -> Entry | None:
        """The entry at `place` if it is whole; a damaged one is moved aside and None is returned."""
        try:
            manifest = json.loads((place / _MANIFEST).read_bytes())
        except ValueError as error:
            self._quarantine(place, f"unreadable manifest: {error}")
            return None
        except OSError:
            if place.is_dir():
                self._quarantine(place, "no readable manifest")
            return None
        if damage := self._damage(place, manifest):
            self._quarantine(place, damage)
            return None
        return Entry(place, manifest["facts"], hit=True)

    def _damage(self, place: Path, manifest: Mapping[str, Any]) -> str | None:
        """What is wrong with an entry, or None. Digests come from the memo, so a host reads a file's bytes once."""
        listed = manifest.get("files")
        if manifest.get("schema") != SCHEMA or not isinstance(listed, dict) or "facts" not in manifest:
            return "manifest of another schema"
        present = {path.relative_to(place).as_posix(): path for path in _files(place) if path.name != _MANIFEST}
        if present.keys() != listed.keys():
            return f"files differ from the manifest: {', '.join(sorted(present.keys() ^ listed.keys()))}"
        for name, path in present.items():
            if path.stat().st_size != listed[name]["size"]:
                return f"{name} has the wrong size"
            if self.memo.digest(path) != listed[name]["sha256"]:
                return f"{name} has the wrong SHA-256"
        return None

    def _quarantine(self, place: Path, reason: str) -> None:
        logger.warning('cache entry damaged entry=%s reason="%s" next=rebuilt', place.name[:12], reason)
        target = self.root / "quarantine" / f"{place.name}-{time.time_ns()}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            place.rename(target)
        except FileNotFoundError:
            return  # another process moved it first
        except OSError as error:
            logger.warning('cache entry not moved aside entry=%s reason="%s"', place.name[:12], error.strerror)

    @contextmanager
    def _one_maker(self, key: Key) -> Iterator[None]:
        """Hold the key's lock. The kernel frees it when its holder dies, so there is no stale lock to break."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{key.digest}.lock")
        owner = locks / f"{key.digest}.owner"
        began = time.monotonic()
        while True:
            try:
                lock.acquire(timeout=_WAIT_REPORT_SECONDS)
                break
            except Timeout:
                waited = _since(began)
                logger.info(
                    "waiting kind=%s key=%s maker=%s seconds=%s", key.kind, key.digest[:12], _who(owner), waited
                )
        try:
            owner.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            lock.release()


@functools.cache
def _private_folder() -> str:
    """A temporary folder that is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="triton-unified-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _made(folder: Path, make: Make) -> dict[str, Any]:
    """Run a maker; its own OSErrors are its failure, not the cache's."""
    try:
        return dict(make(folder))
    except OSError as error:
        raise CacheError(
            "a cache entry could not be made",
            f"{error.filename or folder}: {error.strerror or error}",
            "Make room, or choose another folder with TRITON_UNIFIED_CACHE",
        ) from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(folder: Path) -> None:
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _who(owner: Path) -> str:
    try:
        return f'"{owner.read_text()}"'
    except OSError:
        return "unknown"


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
