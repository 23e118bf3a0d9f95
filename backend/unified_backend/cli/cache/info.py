"""`triton-unified cache info`: where the cache is, what it holds, whether it helps, and who stands behind it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.amounts import amount
from unified_backend.cache import Cache
from unified_backend.cache.remote import Remote, RemoteError
from unified_backend.cli.opened import opened
from unified_backend.cli.shown import AsJson, print_facts, print_json

__all__ = ["info"]

_LOOKUPS = ("hit", "pulled", "made")


def info(as_json: AsJson = False) -> None:
    """Say where the cache is, what it holds, how often it had what was asked for, and whether its remote tier answers.

    Example:

    triton-unified cache info
    """
    found = _found(opened())
    if as_json:
        print_json(found)
    else:
        print_facts(_sentences(found))


def _found(cache: Cache) -> dict[str, Any]:
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    for entry in cache.store.entries():
        kinds[entry.manifest.key.kind]["count"] += 1
        kinds[entry.manifest.key.kind]["bytes"] += entry.manifest.size
    counts = cache.store.usage.counts()
    signer = cache.store.signer
    return {
        "directory": str(cache.root),
        "exists": cache.root.is_dir(),
        "writable": _writable(cache.root),
        "bytes": sum(kind["bytes"] for kind in kinds.values()),
        "limit": cache.limit,
        "entries": dict(kinds),
        "lookups": _lookups(counts),
        "quarantined": counts.get("quarantined", 0),
        "signer": None if signer is None else {"key": signer.name, "signs": signer.can_sign},
        "remote": _remote(cache.remote) if cache.remote else None,
        "waiting_to_be_pushed": len(cache.outbox.waiting()),
    }


def _lookups(counts: Mapping[str, int]) -> dict[str, Any]:
    """Lookups by kind of entry and in all, with the share that this disk answered."""
    kinds = sorted({name.rpartition(".")[0] for name in counts if name.endswith(tuple(f".{how}" for how in _LOOKUPS))})
    table = {kind: {how: counts.get(f"{kind}.{how}", 0) for how in _LOOKUPS} for kind in kinds}
    together = {how: sum(row[how] for row in table.values()) for how in _LOOKUPS}
    asked = sum(together.values())
    return {**together, "hit_rate": round(together["hit"] / asked, 4) if asked else None, "by_kind": table}


def _remote(remote: Remote) -> dict[str, Any]:
    try:
        remote.objects.names("leases")
        reason = None
    except RemoteError as error:
        reason = str(error)
    return {"url": remote.url, "answers": reason is None, "reason": reason, "left_alone": remote.left_alone}


def _sentences(found: Mapping[str, Any]) -> dict[str, str]:
    state = "" if found["writable"] else " (read-only)"
    if not found["exists"]:
        state = " (not there yet: the first load makes it)"
    entries = found["entries"]
    kinds = ", ".join(f"{kind['count']} {name} ({amount(kind['bytes'])})" for name, kind in sorted(entries.items()))
    signer, remote = found["signer"], found["remote"]
    facts = {
        "directory": f"{found['directory']}{state}",
        "size": f"{amount(found['bytes'])} of at most {amount(found['limit'])}",
        "entries": kinds or "none: the cache is empty",
        "lookups": _lookups_sentence(found["lookups"]),
        "damaged": f"{found['quarantined']} set aside so far",
        "signatures": "none asked for: TRITON_UNIFIED_CACHE_KEY_FILE is not set",
        "remote": "none: TRITON_UNIFIED_REMOTE_CACHE is not set",
    }
    if signer:
        facts["signatures"] = f"{signer['key']}, {'signs and verifies' if signer['signs'] else 'verifies only'}"
    if remote:
        facts["remote"] = f"{remote['url']} {'answers' if remote['answers'] else 'fails: ' + remote['reason']}"
        facts |= {f"remote {name}": f"left alone for now: {why}" for name, why in remote["left_alone"].items()}
    if remote or found["waiting_to_be_pushed"]:
        facts["waiting to be pushed"] = str(found["waiting_to_be_pushed"])
    return facts


def _lookups_sentence(lookups: Mapping[str, Any]) -> str:
    if lookups["hit_rate"] is None:
        return "none yet"
    counts = ", ".join(f"{lookups[how]} {how}" for how in _LOOKUPS)
    return f"{lookups['hit_rate']:.1%} hits ({counts})"


def _writable(root: Path) -> bool:
    """Whether entries can be written there, or the folder be made."""
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    return os.access(existing, os.W_OK | os.X_OK)
