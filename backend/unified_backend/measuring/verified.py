"""What the cache's manifests say of the entries that some loads used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

from unified_backend.loading import open_cache
from unified_backend.measuring.result import Check

__all__ = ["verified"]

_KEPT = ("output", "batch", "cosine", "top1", "tolerance", "passed")
_AGAINST = {"precision": "the model in FP32", "canonical": "the source's framework"}


def verified(labels: Set[str], members: Set[str], since: float) -> list[Check]:
    """Every comparison that let these models be served.

    Args:
        labels: `model/version` of the loads.
        members: names of models that were loaded inside another.
        since: seconds since 1970, from which on uses of entries are theirs.
    """
    rows = []
    with open_cache() as cache:
        used = {
            digest
            for use in cache.store.usage.uses()
            if use.unix_time >= since and (use.label in labels or use.label.partition("/")[0] in members)
            for digest in use.entries
        }
        for entry in cache.store.entries():
            if entry.path.name not in used:
                continue
            facts = entry.manifest.facts
            against = facts.get("reference") or _AGAINST.get(entry.manifest.key.kind, "the model before it")
            rows += [_check(row, str(against)) for row in facts.get("verified") or []]
    return rows


def _check(row: Mapping[str, Any], against: str) -> Check:
    """A row with errors that are numbers: nothing is relative to an output of zeros, and a shape is off by all."""
    absolute, relative = float(row["max_abs"]), float(row["max_rel"])
    absolute = absolute if math.isfinite(absolute) else 1.0
    relative = relative if math.isfinite(relative) else absolute
    kept = {name: row[name] for name in _KEPT if name in row}
    return Check(**kept, max_abs=absolute, max_rel=relative, compared_with=against)
