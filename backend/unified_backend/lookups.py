"""The entries of one model, looked up in one load, and the report of what the load did."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_backend.cache import Cache, Entry, Key, Snapshot
from unified_backend.engines.sessions import library_digests
from unified_backend.errors import SourceChangedError
from unified_backend.settings import Settings

__all__ = ["Lookup", "Make", "Report"]

Make = Callable[[Path], Mapping[str, Any]]


@dataclasses.dataclass
class Report:
    """What a load did: seconds by phase, and whether each lookup found its entry.

    Attributes:
        seconds: phase -> seconds, in the order of their ends; those of a phase inside another count for the inner one.
        lookups: kind of entry -> `hit` on this disk, `pulled` from the remote tier, or `made`.
        entries: digests of the entries' keys.
        notes: decisions a user may want to know about.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    lookups: dict[str, str] = dataclasses.field(default_factory=dict)
    entries: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    _inner: list[float] = dataclasses.field(default_factory=lambda: [0.0], repr=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside under this name."""
        began = time.monotonic()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took, inside = time.monotonic() - began, self._inner.pop()
            self._inner[-1] += took
            self.seconds[name] = round(self.seconds.get(name, 0) + took - inside, 4)

    def line(self) -> str:
        """The report as key=value pairs on one line."""
        hits = (f"{kind}={origin}" for kind, origin in self.lookups.items())
        return " ".join((*hits, *(f"{phase}_s={seconds:.3f}" for phase, seconds in self.seconds.items())))


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Entries of one model, looked up in one load."""

    label: str
    snapshot: Snapshot
    settings: Settings
    cache: Cache
    report: Report

    def __call__(self, key: Key, make: Make, required: bool = False) -> Entry:
        """The entry of a key, made if it is missing; what was made of files that changed meanwhile is not kept.

        Args:
            required: never make it.

        Raises:
            NotCachedError: `required`, or the setting says so, and it is missing.
            SourceChangedError: the source's files are not those that the key was made of.
        """

        def from_these_bytes(folder: Path) -> Mapping[str, Any]:
            facts = make(folder)
            # The key is of the bytes that were digested: what was made of others must not be filed under it.
            libraries = library_digests(self.settings)
            if not self.snapshot.holds() or key.fields.get("custom_op_library", libraries) != libraries:
                raise SourceChangedError(self.label)
            return facts

        entry = self.cache.get_or_make(key, from_these_bytes, self.label, required or self.settings.require_cached)
        return self._reported(key, entry)

    def at_hand(self, key: Key) -> Entry | None:
        """The entry of a key, unless it would have to be made or waited for."""
        entry = self.cache.at_hand(key)
        return entry and self._reported(key, entry)

    def _reported(self, key: Key, entry: Entry) -> Entry:
        self.report.lookups[key.kind] = entry.origin
        if key.digest not in self.report.entries:
            self.report.entries.append(key.digest)
        return entry
