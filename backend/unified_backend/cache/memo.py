"""What was found out about a file, remembered for as long as the file stays as it was."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from unified_backend.cache.files import sha256_of, write_whole

__all__ = ["FileMemo", "Snapshot"]

# A file changed within the clock granularity of its own mtime looks unchanged afterwards ("racy git"); two seconds
# covers every filesystem in use (FAT has the coarsest stamps).
_SETTLED_SECONDS = 2.0
_SECOND_NS = 10**9


class FileMemo:
    """Facts about files by device, inode, size, mtime and ctime, kept as one small JSON file an inode.

    A memo that cannot be written (read-only cache) is only slower: the fact is worked out again next time.

    Args:
        folder: where it is kept.
        secret: authenticates the notes: one that was not written with it is not believed, so that who can write to the
            folder cannot pass changed bytes off as those of a signed entry.
    """

    def __init__(self, folder: Path, secret: bytes | None = None) -> None:
        self._folder = folder
        self._secret = secret

    def digest(self, path: Path) -> str:
        """SHA-256 of the file's bytes, in hex; an unchanged file is not read again."""
        return str(self.recall(path, "sha256", lambda: sha256_of(path)))

    def recall(self, path: Path, fact: str, find_out: Callable[[], Any]) -> Any:
        """The value of `fact` for this file, from memory or from `find_out`.

        Args:
            path: the file.
            fact: a name for what is asked.
            find_out: works it out; returns JSON values. What it raises is raised and nothing is remembered.
        """
        before = _identity(path)
        note = self._folder / f"{before['device']}-{before['inode']}.json"
        known = self._read(note)
        if known.get("file") == before and fact in known["facts"]:
            return known["facts"][fact]
        value = find_out()
        if _settled(before) and _identity(path) == before:
            facts = known["facts"] if known.get("file") == before else {}
            self._write(note, {"file": before, "facts": {**facts, fact: value}})
        return value

    def _read(self, note: Path) -> dict[str, Any]:
        try:
            known = json.loads(note.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(known, dict) or not isinstance(known.get("facts"), dict):
            return {}
        mark = str(known.pop("mark", ""))
        return known if hmac.compare_digest(mark.encode(), self._mark(known).encode()) else {}

    def _write(self, note: Path, known: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            write_whole(note, json.dumps({**known, "mark": self._mark(known)}))

    def _mark(self, known: Mapping[str, Any]) -> str:
        text = json.dumps(known, sort_keys=True).encode()
        return (
            hashlib.sha256(text).hexdigest()
            if self._secret is None
            else hmac.digest(self._secret, text, "sha256").hex()
        )


class Snapshot:
    """Files as they were at one moment, to tell afterwards whether what was made of them is of these bytes.

    Attributes:
        digests: SHA-256 of each file's bytes, in hex, in the order of the files.
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
            return self._settled or [sha256_of(path) for path in self._seen] == self.digests
        except OSError:
            return False


def _settled(identity: Mapping[str, int]) -> bool:
    """Whether these times and this inode will be other ones after any change.

    Where ctime is a whole second, no kernel took it from its clock: file systems out of an image (SquashFS, EROFS) and
    in front of an object store make it, and inode numbers too, from what they have, alike for different bytes.
    """
    if identity["ctime_ns"] % _SECOND_NS == 0:
        return False
    return time.time_ns() - max(identity["mtime_ns"], identity["ctime_ns"]) > _SETTLED_SECONDS * _SECOND_NS


def _identity(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }
