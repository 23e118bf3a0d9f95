"""`triton-unified cache verify`: every byte of every entry read and compared, and what is damaged set aside."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from unified_backend.cache import Cache
from unified_backend.cache.catalogue import SHORT, Catalogue
from unified_backend.cache.files import sha256_of
from unified_backend.cache.fleet import pull_entries
from unified_backend.cache.manifest import DamagedError, UntrustedError
from unified_backend.cache.store import kind_of
from unified_backend.cli.opened import opened, translated
from unified_backend.cli.shown import AsJson, print_json, tracked
from unified_backend.errors import one_line

__all__ = ["verify"]


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged entries aside, and pull them again from the remote cache.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every entry in full and compare it with its manifest, and its signature with the key.

    Exits with 1 if an entry was damaged, repaired or not. What is set aside and not pulled is built again by the next
    load that wants it.

    Example:

    triton-unified cache verify --repair
    """
    cache = opened()
    damaged: list[dict[str, str]] = []
    with translated(cache):
        places = cache.store.places()
        models = Catalogue.of(cache.store).models
        for place in tracked("verifying", places):
            if reason := _damage(cache, place):
                row = {"key": place.name, "kind": kind_of(place), "model": ", ".join(models(place.name))}
                damaged.append({**row, "reason": reason, "repair": _repaired(cache, place) if repair else ""})
    if as_json:
        print_json({"verified": len(places), "damaged": damaged})
    else:
        _print(len(places), damaged, repair)
    if damaged:
        raise typer.Exit(1)


def _damage(cache: Cache, place: Path) -> str | None:
    """How an entry differs from what was published, read from the disk and not from memory; None if it is gone."""
    try:
        cache.store.check(place, sha256_of)
    except DamagedError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or place).name}: {error.strerror}" if place.exists() else None
    return None


def _repaired(cache: Cache, place: Path) -> str:
    with contextlib.suppress(OSError):
        cache.store.repair(place, sha256_of)
    if place.exists():
        return _left(cache, place)
    if not cache.remote:
        return "set aside"
    (sent,) = pull_entries(cache, cache.remote, [(kind_of(place), place.name)])
    return "pulled again" if sent.outcome == "pulled" else f"set aside, not pulled: {sent.reason}"


def _left(cache: Cache, place: Path) -> str:
    """Why something is there after a repair."""
    try:
        cache.store.check(place, sha256_of)
    except UntrustedError:
        return "left there, unused: hosts with another key may use it"
    except (DamagedError, OSError):
        return "not set aside: the cache cannot be written"
    return "made again meanwhile"


def _print(verified: int, damaged: list[dict[str, str]], repair: bool) -> None:
    for row in damaged:
        repaired = f" repair={row['repair']!r}" if row["repair"] else ""
        typer.secho(
            f"damaged: kind={row['kind']} key={row['key'][:SHORT]} model={one_line(row['model']) or '-'} "
            f"reason={row['reason']!r}{repaired}",
            fg="red",
        )
    typer.echo(f"verified: entries={verified} damaged={len(damaged)}")
    if damaged and not repair:
        typer.echo("next: `triton-unified cache verify --repair` sets the damaged ones aside", err=True)
