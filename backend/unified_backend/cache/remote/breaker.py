"""A store that fails is left alone for a while by every process of the host, with one warning each time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["Breaker"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 600.0  # seconds, doubled with each failure in between


class Breaker:
    """When a store may be asked again, by operation (`read`, `write`), in a small file that processes share.

    Without a writable folder it holds for this process only.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._url = url
        self._file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"
        self._own: dict[str, Any] = {}

    def closed(self, operation: str) -> bool:
        """Whether the store may be asked now."""
        return float(self._state().get(operation, {}).get("until", 0)) <= time.time()

    def failed(self, operation: str, reason: str) -> None:
        """Leave the store alone: half a minute after the first failure, ten minutes at most after many."""
        state = self._state()
        failures = int(state.get(operation, {}).get("failures", 0)) + 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1))
        state[operation] = {"failures": failures, "until": time.time() + pause, "reason": reason}
        self._write(state)
        logger.warning(
            'remote cache failed url=%s operation=%s reason="%s" next="local only, tried again in %.0f s"',
            self._url,
            operation,
            reason,
            pause,
        )

    def succeeded(self, operation: str) -> None:
        """Forget earlier failures."""
        state = self._state()
        if state.pop(operation, None):
            self._write(state)
            logger.info("remote cache answers again url=%s operation=%s", self._url, operation)

    def reasons(self) -> dict[str, str]:
        """Operation -> why it is left alone now."""
        return {name: str(value.get("reason")) for name, value in self._state().items() if not self.closed(name)}

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return dict(self._own)
        return state if isinstance(state, dict) else {}

    def _write(self, state: dict[str, Any]) -> None:
        self._own = state
        aside = self._file.with_name(f"{self._file.name}.{os.getpid()}.{time.monotonic_ns()}")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(state))
            aside.replace(self._file)
