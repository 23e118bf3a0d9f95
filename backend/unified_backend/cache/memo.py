"""What was found out about a file, remembered for as long as the file stays as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["FileMemo"]

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
        settled = time.time_ns() - max(before["mtime_ns"], before["ctime_ns"]) > _SETTLED_SECONDS * 1e9
        if settled and _identity(path) == before:
            facts = known["facts"] if known.get("file") == before else {}
            _write(note, {"file": before, "facts": {**facts, fact: value}})
        return value


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
