"""A store that fails is left alone for a while by every process of the host, with one warning when that begins."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.cache.files import write_whole

__all__ = ["Breaker"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 600.0  # seconds, doubled with each failure in between
_FORGOTTEN_AFTER = 600.0  # seconds after a pause: what fails then is news again


class Breaker:
    """When a store may be asked again, by operation (`read`, `write`), in a small file that processes share.

    Without a writable folder it holds for this process only.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._url = url
        self._file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"
        self._own: dict[str, Any] = {}
        self._told: set[str] = set()

    def closed(self, operation: str) -> bool:
        """Whether the store may be asked now; if not, the log says so once a process."""
        pause = self._pause(operation)
        if pause > 0 and operation not in self._told:
            self._told.add(operation)
            self._say(logging.INFO, "left alone", operation, self.reasons().get(operation, ""), pause)
        return pause <= 0

    def failed(self, operation: str, reason: str) -> None:
        """Leave the store alone: half a minute after the first failure, ten minutes at most after many."""
        state = self._state()
        earlier = _Record.of(state.get(operation))
        failures = 1 + (earlier.failures if time.time() - earlier.until < _FORGOTTEN_AFTER else 0)
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, 10))
        self._write({**state, operation: dataclasses.asdict(_Record(failures, time.time() + pause, reason))})
        self._told.add(operation)
        self._say(logging.INFO if failures > 1 else logging.WARNING, "failed", operation, reason, pause)

    def succeeded(self, operation: str) -> None:
        """Forget earlier failures."""
        state = self._state()
        if state.pop(operation, None):
            self._write(state)
            logger.info("remote cache answers again url=%s operation=%s", self._url, operation)

    def reasons(self) -> dict[str, str]:
        """Operation -> why it is left alone now."""
        return {name: _Record.of(value).reason for name, value in self._state().items() if self._pause(name) > 0}

    def _pause(self, operation: str) -> float:
        """Seconds until the store may be asked; a clock that was set back does not make them more than the longest."""
        pause = _Record.of(self._state().get(operation)).until - time.time()
        return pause if pause <= _LONGEST_PAUSE else 0.0

    def _say(self, level: int, what: str, operation: str, reason: str, pause: float) -> None:
        logger.log(
            level,
            'remote cache %s url=%s operation=%s reason="%s" next="local only, tried again in %.0f s"',
            what,
            self._url,
            operation,
            reason,
            pause,
        )

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return dict(self._own)
        return state if isinstance(state, dict) else {}

    def _write(self, state: dict[str, Any]) -> None:
        self._own = state
        with contextlib.suppress(OSError):
            write_whole(self._file, json.dumps(state))


@dataclasses.dataclass(frozen=True)
class _Record:
    """What the file says of one operation; nothing readable is no failure."""

    failures: int = 0
    until: float = 0.0
    reason: str = ""

    @classmethod
    def of(cls, value: object) -> _Record:
        if not isinstance(value, Mapping):
            return cls()
        try:
            return cls(int(value["failures"]), float(value["until"]), str(value["reason"]))
        except (KeyError, TypeError, ValueError):
            return cls()
