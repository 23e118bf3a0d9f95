"""The pusher: `python -m unified_backend.cache.push ROOT` sends what waits in the outbox of a cache, and ends."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from unified_backend.cache import Cache
from unified_backend.logs import to_standard_error
from unified_backend.variables import cache_settings

__all__: list[str] = []

_LOG_BYTES = 1 << 20


def _main(root: Path) -> int:
    log = root / "push.log"
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.write_bytes(b"")
    to_standard_error()
    cache = Cache.from_settings(cache_settings(), root)
    failed = [sent for sent in cache.push_waiting(patient=True) if sent.outcome == "failed"]
    if failed:
        logging.getLogger(__name__).warning("entries left for the next pusher: %d", len(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
