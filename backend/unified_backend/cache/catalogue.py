"""Whose an entry is, and what it runs on: entries found by the model that uses them, or by the begin of their key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from unified_backend.cache.keys import Key
from unified_backend.cache.manifest import Manifest
from unified_backend.cache.store import Store, Stored
from unified_backend.errors import Refused

__all__ = ["SHORT", "Catalogue", "by_prefix", "device_of", "is_model", "maker_of"]

SHORT = 12  # digits of a key that are shown: 48 bits tell a few million entries apart
_LEAST = 4
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The readable entries of a store at one moment.

    Attributes:
        entries: by digest.
        users: digest -> models (`model/version`) whose last load used it.
    """

    entries: Mapping[str, Stored]
    users: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, store: Store) -> Self:
        """What is there now."""
        users: dict[str, list[str]] = {}
        for use in store.usage.uses():
            for digest in set(use.entries):
                users.setdefault(digest, []).append(use.label)
        return cls({entry.digest: entry for entry in store.entries()}, users)

    def models(self, digest: str) -> Sequence[str]:
        """The models that use an entry; where none is known to, the one that it was made for."""
        if users := self.users.get(digest):
            return users
        entry = self.entries.get(digest)
        return [maker] if entry and (maker := maker_of(entry.manifest)) else []

    def of_model(self, name: str) -> list[Stored]:
        """The entries that a model (or a version of it) uses, or that were made for it.

        Raises:
            Refused: there are none.
        """
        found = [
            entry
            for entry in self.entries.values()
            if any(is_model(label, name) for label in (*self.models(entry.digest), maker_of(entry.manifest)))
        ]
        if not found:
            raise Refused(
                f'no entry of a model "{name}" is in the cache',
                "none was made for it, nor used by its last load",
                "See what there is with `triton-unified cache ls`",
            )
        return found


def maker_of(manifest: Manifest) -> str:
    """The model version that an entry was made for, or an empty string."""
    return str(manifest.made.get("model") or "")


def is_model(label: str, name: str) -> bool:
    """Whether `name` (`detector` or `detector/1`) means the model version `label`."""
    return name in (label, label.rpartition("/")[0])


def device_of(key: Key) -> str:
    """What an entry can be used on: `any`, `cpu:` and the instruction sets that it was made for, `gpu:` and which."""
    if gpu := key.fields.get("device", key.fields.get("gpu")):
        return f"gpu:{gpu}"
    features = key.fields.get("cpu_features", key.fields.get("cpu"))
    return "any" if features is None else f"cpu:{features}"


def by_prefix(digests: Iterable[str], prefix: str, where: str) -> str:
    """The one digest that begins so.

    Args:
        where: they are, for the message: `in the cache`.

    Raises:
        Refused: it is no begin of a key, or of none, or of several.
    """
    wanted = prefix.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{_LEAST},64}}", wanted):
        raise Refused(
            f'"{prefix}" is not a key',
            f"a key is given by the first {_LEAST} to 64 of its hexadecimal digits",
            "Copy them from `triton-unified cache ls`",
        )
    found = sorted(digest for digest in set(digests) if digest.startswith(wanted))
    if not found:
        raise Refused(
            f"no entry {where} has a key that begins with {wanted}",
            f"there are {len(set(digests))} with other keys",
            "See them with `triton-unified cache ls`",
        )
    if len(found) > 1:
        listed = ", ".join(digest[:SHORT] for digest in found[:_LISTED])
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise Refused(f"{len(found)} keys begin with {wanted}", f"{listed}{more}", "Give more digits")
    return found[0]
