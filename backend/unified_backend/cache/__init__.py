"""A content-addressed store of what is slow to make: canonical models, engines, findings."""

from __future__ import annotations

from unified_backend.cache.cache import Cache, Entry
from unified_backend.cache.keys import Key
from unified_backend.cache.memo import FileMemo, Snapshot

__all__ = ["Cache", "Entry", "FileMemo", "Key", "Snapshot"]
