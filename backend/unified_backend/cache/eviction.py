"""Room: a size limit, kept by removing what was used longest ago and nobody uses now."""

from __future__ import annotations

import dataclasses
import logging
import os
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
        size: bytes that are left, of entries and of what is in quarantine or of another version.
    """

    removed: Sequence[Stored]
    held: Sequence[Stored]
    size: int


def default_limit(root: Path) -> int:
    """Bytes: 20 GB or a fifth of the disk that holds `root`, whichever is less."""
    existing = next(folder for folder in (root, *root.parents) if os.path.exists(folder))  # noqa: PTH110 - never raises
    return min(_DEFAULT_BYTES, int(_DEFAULT_SHARE * shutil.disk_usage(existing).total))


def evict(store: Store, limit: int) -> Evicted:
    """Remove entries, least recently used first, until those left take no more than `limit` bytes.

    An entry that a live process of this host holds stays, and one that is being made is not an entry yet. Where that
    keeps the cache above its limit, it is above its limit.
    """
    store.sweep()
    due: list[tuple[float, int, Path, Stored | None]] = [
        (entry.last_used, entry.manifest.size, entry.path, entry) for entry in store.entries()
    ]
    due += [(used, size, path, None) for path, size, used in store.strays()]
    left = sum(size for _, size, _, _ in due)
    removed: list[Stored] = []
    held: list[Stored] = []
    refused: dict[str, str] = {}
    for _, size, path, entry in sorted(due, key=lambda one: one[0]):
        if left <= limit:
            break
        try:
            gone = store.remove(path)
        except FileNotFoundError:
            gone = True  # another process was quicker
        except OSError as error:
            refused[path.name[:12]] = error.strerror or str(error)
            continue
        left -= size if gone else 0
        if entry:
            (removed if gone else held).append(entry)
    if refused:
        entries = ",".join(refused)
        logger.warning('cache entries not evicted entries=%s reason="%s"', entries, "; ".join({*refused.values()}))
    if removed:
        logger.info("cache evicted entries=%d bytes_left=%d limit=%d held=%d", len(removed), left, limit, len(held))
    return Evicted(removed, held, left)
