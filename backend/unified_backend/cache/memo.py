"""What was found out about a file, remembered for as long as the file stays as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FileMemo", "Snapshot"]

# A file changed within the clock granularity of its own mtime looks unchanged afterwards ("racy git"); two seconds
# covers every filesystem in use (FAT has the coarsest stamps).
_SETTLED_SECONDS = 2.0


class FileMemo:
    """Facts about files by device, inode, size, mtime and ctime, kept as one small JSON file an inode.

    A memo that cannot be written (read-only cache) is only slower: the fact is worked out again next time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def digest(self, path: Path) -> str:
        """SHA-256 of the file's bytes, in hex; an unchanged file is not read again."""
        return str(self.recall(path, "sha256", lambda: _sha256(path)))

    def recall(self, path: Path, fact: str, find_out: Callable[[], Any]) -> Any:
        """The value of `fact` for this file, from memory or from `find_out`.

        Args:
            path: the file.
            fact: a name for what is asked.
            find_out: works it out; returns JSON values. What it raises is raised and nothing is remembered.
        """
        before = _identity(path)
        note = self._folder / f"{before['device']}-{before['inode']}.json"
        known = _read(note)
        if known.get("file") == before and fact in known["facts"]:
            return known["facts"][fact]
        value = find_out()
        if _settled(before) and _identity(path) == before:
            facts = known["facts"] if known.get("file") == before else {}
            _write(note, {"file": before, "facts": {**facts, fact: value}})
        return value


class Snapshot:
    """Files as they were at one moment, to tell afterwards whether what was made of them is of these bytes.

    Attributes:
        digests: SHA-256 of each file's bytes, in hex.
    """

    def __init__(self, memo: FileMemo, files: Iterable[Path]) -> None:
        self._seen = {path: _identity(path) for path in files}
        self._settled = all(map(_settled, self._seen.values()))
        self.digests = [memo.digest(path) for path in self._seen]

    def holds(self) -> bool:
        """Whether the files have not changed since."""
        try:
            if any(_identity(path) != seen for path, seen in self._seen.items()):
                return False
            # Of a file just written, the times do not tell: a change within their granularity leaves them as they are.
            return self._settled or [_sha256(path) for path in self._seen] == self.digests
        except OSError:
            return False


def _settled(identity: Mapping[str, int]) -> bool:
    return time.time_ns() - max(identity["mtime_ns"], identity["ctime_ns"]) > _SETTLED_SECONDS * 1e9


def _identity(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(note: Path) -> dict[str, Any]:
    try:
        known = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("facts"), dict) else {}


def _write(note: Path, known: dict[str, Any]) -> None:
    aside = note.with_name(f"{note.name}.{os.getpid()}.{time.monotonic_ns()}")
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(known))
        aside.replace(note)
