"""Checks of what the hosts of a fleet share: the remote cache, and the key that signs its entries."""

from __future__ import annotations

from pathlib import Path

from unified_backend.cache.remote import RemoteError
from unified_backend.cache.remote.objects import Objects
from unified_backend.cache.signing import read_signer
from unified_backend.doctor.finding import Finding, ok, refused, warning
from unified_backend.errors import CacheError

__all__ = ["check_key", "check_remote"]


def check_key(file: Path) -> Finding:
    """Whether the key file can be used; without it no model loads."""
    try:
        signer = read_signer(file)
    except CacheError as error:
        return refused(error)
    if not signer.can_sign:
        return ok(f"{signer.name} verifies only: what this host builds itself is not kept")
    return ok(f"{signer.name} signs and verifies")


def check_remote(url: str) -> Finding:
    """Whether the store behind the cache can be read; writing is not tried."""
    try:
        objects = Objects(url)
    except CacheError as error:
        return refused(error)
    try:
        objects.names("leases")
    except RemoteError as error:
        return warning(
            f"{objects.url}: {error}; every host builds for itself",
            "Check the bucket, the credentials and the endpoint in the environment",
        )
    return ok(f"{objects.url} answers")
