"""`triton-unified cache ls` and `show`: the entries, and all that one of them says of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unified_backend.amounts import amount
from unified_backend.cache import Cache
from unified_backend.cache.catalogue import SHORT, Catalogue, device_of, maker_of
from unified_backend.cache.files import read_plain
from unified_backend.cache.manifest import MANIFEST, SIGNATURE, DamagedError, Manifest
from unified_backend.cache.store import Stored
from unified_backend.cli.opened import opened, place_of, translated
from unified_backend.cli.shown import AsJson, ago, print_facts, print_json, print_rows
from unified_backend.errors import CacheError

__all__ = ["ls", "show"]

_HEADINGS = ("models", "kind", "engine", "device", "size", "age", "used", "key")


def ls(as_json: AsJson = False) -> None:
    """List the entries, last used first: whose they are, what they are and for which device, how large and how old.

    Piped, each is a line with tabs between its columns; --json has the whole keys.

    Example:

    triton-unified cache ls
    """
    cache = opened()
    catalogue = Catalogue.of(cache.store)
    entries = sorted(catalogue.entries.values(), key=lambda entry: -entry.last_used)
    rows = [_row(entry, catalogue) for entry in entries]
    if as_json:
        print_json(rows)
    elif rows:
        print_rows(_HEADINGS, map(_cells, rows), right=("size", "age", "used"), cut=("device",))
    else:
        typer.echo(f"empty: {cache.root}", err=True)


def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The first digits of an entry's key, at least 4.")],
    as_json: AsJson = False,
) -> None:
    """Print what an entry says of itself: all that its key was made from, its files, who made it, what was found out.

    Exits with 1 if it is damaged.

    Example:

    triton-unified cache show 3fa91c
    """
    cache = opened()
    place = place_of(cache, key)
    with translated(cache):
        try:
            manifest = Manifest.from_bytes(read_plain(place / MANIFEST), place.name)
        except DamagedError as error:
            raise CacheError(
                f"the entry {place.name[:SHORT]} is damaged",
                str(error),
                "Set it aside with `triton-unified cache verify --repair`",
            ) from None
        damage = _damage(cache, place)
    described = _described(cache, place, manifest, damage)
    if as_json:
        print_json(described)
    else:
        print_facts(_lines(described, manifest))
    if damage:
        raise typer.Exit(1)


def _row(entry: Stored, catalogue: Catalogue) -> dict[str, Any]:
    key, made = entry.manifest.key, entry.manifest.made
    return {
        "models": list(catalogue.models(entry.digest)),
        "kind": key.kind,
        "engine": key.fields.get("engine"),
        "device": device_of(key),
        "bytes": entry.manifest.size,
        "made_unix_time": _number(made.get("unix_time")),
        "last_used_unix_time": entry.last_used,
        "signed": entry.signed,
        "key": entry.digest,
    }


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        ", ".join(row["models"]) or "-",
        row["kind"],
        row["engine"] or "-",
        row["device"],
        amount(row["bytes"]),
        ago(row["made_unix_time"]),
        ago(row["last_used_unix_time"]),
        row["key"][:SHORT],
    ]


def _damage(cache: Cache, place: Path) -> str | None:
    try:
        cache.store.check(place, cache.store.memo.digest)
    except DamagedError as error:
        return str(error)
    return None


def _described(cache: Cache, place: Path, manifest: Manifest, damage: str | None) -> dict[str, Any]:
    return {
        "key": place.name,
        "kind": manifest.key.kind,
        "device": device_of(manifest.key),
        "folder": str(place),
        "bytes": manifest.size,
        "models": list(Catalogue.of(cache.store).models(place.name)),
        "last_used_unix_time": (place / MANIFEST).stat().st_mtime,
        "signed": (place / SIGNATURE).exists(),
        "verified_by": cache.store.signer.name if cache.store.signer and not damage else None,
        "damage": damage,
        "manifest": json.loads(manifest.to_bytes()),
    }


def _lines(described: Mapping[str, Any], manifest: Manifest) -> dict[str, str]:
    made = manifest.made
    when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(_number(made.get("unix_time"))))
    if described["verified_by"]:
        signed = f"yes, by {described['verified_by']}"
    else:
        signed = "yes, not verified: TRITON_UNIFIED_CACHE_KEY_FILE is not set" if described["signed"] else "no"
    return {
        "key": described["key"],
        "kind": described["kind"],
        "models": ", ".join(described["models"]) or "-",
        "made": f"for {maker_of(manifest) or '-'} on {made.get('host')} at {when} in {made.get('seconds')} s",
        "used": f"{ago(described['last_used_unix_time'])} ago",
        "folder": described["folder"],
        "state": f"damaged: {described['damage']}" if described["damage"] else "intact",
        "signed": signed,
        **{f"depends on {name}": _value(value) for name, value in sorted(manifest.key.fields.items())},
        **{f"file {name}": f"{amount(file.size)}, SHA-256 {file.sha256}" for name, file in manifest.files.items()},
        **{f"found out {name}": _value(value) for name, value in manifest.facts.items()},
    }


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
