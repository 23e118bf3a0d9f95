"""What a cache was asked for: counters that many processes raise at once, and which model uses which entries."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from unified_backend.cache.files import write_whole

__all__ = ["Usage", "Use"]


@dataclasses.dataclass(frozen=True)
class Use:
    """The entries that a model version was last loaded from.

    Attributes:
        label: `model/version`.
        entries: digests of their keys.
        unix_time: of that load, in seconds.
    """

    label: str
    entries: tuple[str, ...]
    unix_time: float


class Usage:
    """Counters and uses, in a folder; where it cannot be written, nothing is counted and nothing fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def count(self, *names: str) -> None:
        """Raise a counter by one: one byte appended to a file, which needs no lock and whose size is the count."""
        with contextlib.suppress(OSError):
            counters = self._folder / "counts"
            counters.mkdir(parents=True, exist_ok=True)
            handle = os.open(counters / ".".join(names), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(handle, b".")
            finally:
                os.close(handle)

    def counts(self) -> dict[str, int]:
        """Counter -> count."""
        return {path.name: path.stat().st_size for path in sorted((self._folder / "counts").glob("*"))}

    def remember(self, label: str, entries: Iterable[str]) -> None:
        """Note which entries a model version was loaded from."""
        use = Use(label, tuple(entries), time.time())
        with contextlib.suppress(OSError):
            write_whole(self._folder / "models" / f"{quote(label, safe='')}.json", json.dumps(dataclasses.asdict(use)))

    def uses(self) -> Iterator[Use]:
        """The last load of every model version that was noted."""
        for path in sorted((self._folder / "models").glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                value = json.loads(path.read_bytes())
                yield Use(str(value["label"]), tuple(map(str, value["entries"])), float(value["unix_time"]))
