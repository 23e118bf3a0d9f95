"""Room: a size limit, kept by removing what was used longest ago and nobody uses now."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from unified_backend.cache.store import Store, Stored

__all__ = ["Evicted", "default_limit", "evict"]

logger = logging.getLogger(__name__)

_DEFAULT_BYTES = 20 * 10**9
_DEFAULT_SHARE = 0.2  # of the disk


@dataclasses.dataclass(frozen=True)
class Evicted:
    """What `evict` did.

    Attributes:
        removed: entries that are gone.
        held: entries that were due and stay, because a live process uses them.
        size: bytes of the entries that are left.
    """

    removed: Sequence[Stored]
    held: Sequence[Stored]
    size: int


def default_limit(root: Path) -> int:
    """Bytes: 20 GB or a fifth of the disk that holds `root`, whichever is less."""
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    return min(_DEFAULT_BYTES, int(_DEFAULT_SHARE * shutil.disk_usage(existing).total))


def evict(store: Store, limit: int) -> Evicted:
    """Remove entries, least recently used first, until those left take no more than `limit` bytes.

    An entry that a live process of this host holds stays, and one that is being made is not an entry yet. Where that
    keeps the cache above its limit, it is above its limit.
    """
    store.sweep()
    entries = sorted(store.entries(), key=lambda entry: entry.last_used)
    size = sum(entry.manifest.size for entry in entries)
    removed: list[Stored] = []
    held: list[Stored] = []
    for entry in entries:
        if size <= limit:
            break
        try:
            gone = store.remove(entry.path)
        except FileNotFoundError:
            gone = True  # another process was quicker
        except OSError as error:
            logger.warning('cache entry not evicted entry=%s reason="%s"', entry.digest[:12], error.strerror)
            break
        (removed if gone else held).append(entry)
        size -= entry.manifest.size if gone else 0
    if removed:
        logger.info("cache evicted entries=%d bytes_left=%d limit=%d held=%d", len(removed), size, limit, len(held))
    return Evicted(removed, held, size)
