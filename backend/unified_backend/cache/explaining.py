"""Why something is not in the cache: the entry closest to a key, and the fields in which the two differ."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from unified_backend.cache.keys import Key
from unified_backend.cache.manifest import Manifest

__all__ = ["ABSENT", "Difference", "closest", "differences"]

ABSENT = object()
_MADE_OF = re.compile(r"(files\[|canonical$|conversion$)")  # fields with digests of what an entry is made of


@dataclasses.dataclass(frozen=True)
class Difference:
    """One field in which two keys differ.

    Attributes:
        field: its name; of a value inside a field, the path to it (`session_options.session.x`, `files[1]`).
        old, new: JSON values, or `ABSENT`.
    """

    field: str
    old: Any
    new: Any


def closest(
    key: Key, manifests: Iterable[Manifest], preferred: Collection[str], made_for: Callable[[Manifest], bool]
) -> Manifest | None:
    """The entry of this key's kind that shares most fields with it, made for this model or of the same bytes.

    Args:
        preferred: digests of entries that the model used before: one of these goes before any other.
        made_for: whether an entry was made for the model: these come next.
    """
    wanted = _leaves(key.fields)
    made_of = {name: value for name, value in wanted.items() if _MADE_OF.match(name)}

    def related(manifest: Manifest) -> bool:
        if manifest.key.kind != key.kind:
            return False
        there = _leaves(manifest.key.fields)
        shared = any(there.get(name) == value for name, value in made_of.items())
        return shared or manifest.key.digest in preferred or made_for(manifest)

    def rank(manifest: Manifest) -> tuple[bool, bool, int, float]:
        there = _leaves(manifest.key.fields)
        equal = sum(there.get(name, ABSENT) == value for name, value in wanted.items())
        made = manifest.made.get("unix_time")
        newest = float(made) if isinstance(made, (int, float)) else 0.0
        return manifest.key.digest in preferred, made_for(manifest), equal, newest

    return max(filter(related, manifests), key=rank, default=None)


def differences(old: Key, new: Key) -> Sequence[Difference]:
    """What is another value in `new` than in `old`, by the name of the field."""
    before, after = _leaves(old.fields), _leaves(new.fields)
    return [
        Difference(name, before.get(name, ABSENT), after.get(name, ABSENT))
        for name in sorted(before.keys() | after.keys())
        if before.get(name, ABSENT) != after.get(name, ABSENT)
        # Of a list or an object that was empty, what came in is told and not that it is empty no more.
        and not (_is_empty(before.get(name)) and _has_inside(after, name))
        and not (_is_empty(after.get(name)) and _has_inside(before, name))
    ]


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The values inside nested fields, by the path to each; an empty list or object is a value."""
    inner: Iterable[tuple[str, Any]]
    if isinstance(value, Mapping) and value:
        inner = ((f"{path}.{name}" if path else str(name), item) for name, item in value.items())
    elif isinstance(value, (list, tuple)) and value:
        inner = ((f"{path}[{position}]", item) for position, item in enumerate(value))
    else:
        return {path: value}
    return {leaf: item for name, below in inner for leaf, item in _leaves(below, name).items()}


def _is_empty(value: Any) -> bool:
    return isinstance(value, (list, tuple, Mapping)) and not value


def _has_inside(leaves: Mapping[str, Any], path: str) -> bool:
    return any(name.startswith((f"{path}.", f"{path}[")) for name in leaves)
