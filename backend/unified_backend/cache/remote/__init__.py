"""The tier behind the local cache: one object store for a fleet, never needed and never trusted."""

from __future__ import annotations

from unified_backend.cache.remote.lease import Claim, Lease
from unified_backend.cache.remote.objects import RemoteError
from unified_backend.cache.remote.tier import Remote

__all__ = ["Claim", "Lease", "Remote", "RemoteError"]
