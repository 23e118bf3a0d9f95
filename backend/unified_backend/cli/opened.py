"""The cache as commands open it, what they ask of it, and its failures as errors that a person can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unified_backend import logs
from unified_backend.cache import Cache
from unified_backend.cache.catalogue import by_prefix
from unified_backend.cache.remote import Remote, RemoteError
from unified_backend.errors import CacheError, ConfigError, Refused
from unified_backend.loading import open_cache

__all__ = ["opened", "place_of", "remote_of", "translated"]


def opened() -> Cache:
    """The cache that the environment describes; its warnings go to standard error.

    Raises:
        Refused: a variable of the environment cannot be used.
    """
    logs.to_standard_error(logging.WARNING)
    try:
        return open_cache()
    except (ConfigError, CacheError) as error:
        raise Refused(error.what, error.why, error.do) from None


def remote_of(cache: Cache) -> Remote:
    """The remote tier.

    Raises:
        Refused: none is configured.
    """
    if cache.remote is None:
        raise Refused(
            "there is no remote cache",
            "TRITON_UNIFIED_REMOTE_CACHE is not set",
            "Set it to s3://BUCKET/PREFIX, gs://..., az://... or a folder",
        )
    return cache.remote


def place_of(cache: Cache, prefix: str) -> Path:
    """The folder of the one entry on this disk whose key begins so, damaged or not.

    Raises:
        Refused: there is none, or several.
    """
    places = {place.name: place for place in cache.store.places()}
    return places[by_prefix(places, prefix, "in the cache")]


@contextmanager
def translated(cache: Cache) -> Iterator[None]:
    """Turn what the disk and the remote tier raise into errors that a person can act on."""
    try:
        yield
    except RemoteError as error:
        url = cache.remote.url if cache.remote else ""
        raise CacheError(
            f"the remote cache {url} failed", str(error), "Correct that, and run the same command again"
        ) from None
    except OSError as error:
        reason = f"{error.filename or cache.root}: {error.strerror or error}"
        raise CacheError(
            f"the cache {cache.root} failed", reason, "Check its disk and permissions, or name another folder"
        ) from None
