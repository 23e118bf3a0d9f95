"""A content-addressed store of what is slow to make: canonical models, engines, findings."""

from __future__ import annotations

from unified_backend.cache.memo import FileMemo
from unified_backend.cache.store import Cache, Entry, Key

__all__ = ["Cache", "Entry", "FileMemo", "Key"]
