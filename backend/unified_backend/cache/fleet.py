"""Pushing and pulling because a person wants it: everything or what was named, answered entry by entry."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from unified_backend.cache.cache import Cache
from unified_backend.cache.keys import Key
from unified_backend.cache.manifest import DamagedError
from unified_backend.cache.outbox import Sent
from unified_backend.cache.remote import Remote, RemoteError
from unified_backend.cache.store import kind_of

__all__ = ["drain", "pull_entries", "push_entries"]

_LOOK_SECONDS = 0.3


def push_entries(cache: Cache, remote: Remote, places: Iterable[Path]) -> Iterator[Sent]:
    """Push entries of this disk that the store lacks; after the store failed once, it is not asked again.

    Returns:
        `pushed`, `there`, `gone` from this disk meanwhile, or `failed` and why.
    """
    broken = ""
    for place in places:
        kind, digest = kind_of(place), place.name
        try:
            if broken:
                raise RemoteError(f"not tried after: {broken}")
            manifest = cache.store.check(place, cache.store.memo.digest)
            yield Sent(kind, digest, "pushed" if remote.push(place, manifest.key) else "there")
        except RemoteError as error:
            broken = broken or str(error)
            yield Sent(kind, digest, "failed", str(error))
        except DamagedError as error:
            yield Sent(kind, digest, "failed", f"not sent: {error}")
        except FileNotFoundError:
            yield Sent(kind, digest, "gone", "removed meanwhile")


def drain(cache: Cache) -> Iterator[Sent]:
    """Push what waits in the outbox, until nothing does or the store fails; waits for a pusher that is at work."""
    while cache.outbox.waiting():
        outcomes = []
        for sent in cache.push_waiting():
            outcomes.append(sent.outcome)
            yield sent
        if "failed" in outcomes:
            return
        if not outcomes:
            time.sleep(_LOOK_SECONDS)


def pull_entries(cache: Cache, remote: Remote, names: Iterable[tuple[str, str]]) -> Iterator[Sent]:
    """Pull entries into the local cache; after the store failed once, it is not asked again.

    Args:
        names: kind and digest of each, as the store lists them.

    Returns:
        `pulled`, `there` already, `refused` because it is not what its manifest says or not signed as it should be,
        or `failed` and why.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    broken = ""
    here = {place.name for place in cache.store.places()}
    for kind, digest in names:
        try:
            if broken:
                raise RemoteError(f"not tried after: {broken}")
            yield Sent(kind, digest, "there" if digest in here or not _pull(cache, remote, kind, digest) else "pulled")
        except RemoteError as error:
            broken = broken or str(error)
            yield Sent(kind, digest, "failed", str(error))
        except DamagedError as error:
            yield Sent(kind, digest, "refused", str(error))


def _pull(cache: Cache, remote: Remote, kind: str, digest: str) -> bool:
    manifest = remote.manifest(kind, digest)
    if manifest is None:
        raise DamagedError("it is gone, damaged, or not signed as this host wants it")
    return cache.adopt(manifest.key, lambda folder: _fetch(remote, manifest.key, folder))


def _fetch(remote: Remote, key: Key, folder: Path) -> None:
    if remote.fetch(key, folder) is None:
        raise DamagedError("its files are gone or damaged")
