"""`triton-unified cache gc` and `rm`: room made, never of what a live process uses."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from unified_backend.amounts import amount
from unified_backend.cache import Cache
from unified_backend.cache.catalogue import SHORT, Catalogue, is_model
from unified_backend.cache.store import Stored
from unified_backend.cli.opened import opened, place_of, translated
from unified_backend.cli.shown import AsJson, print_json
from unified_backend.errors import CacheError, Refused, one_line
from unified_backend.values import parse_bytes

__all__ = ["gc", "rm"]


def gc(
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For example 5GB or 512MiB; the configured limit if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove what was used longest ago until the cache is no larger than SIZE, and what dead processes left behind.

    What a live process uses stays, and is named. Exits with 1 if the rest could not be removed.

    Example:

    triton-unified cache gc --max-size 5GB
    """
    cache = opened()
    limit = _size(max_size) if max_size is not None else cache.limit
    with translated(cache):
        catalogue = Catalogue.of(cache.store)
        done = cache.evict(limit)
    # What is over the limit and not held should have gone.
    stuck = done.size > limit and done.size != sum(entry.manifest.size for entry in done.held)
    if as_json:
        print_json(
            {
                "limit": limit,
                "bytes": done.size,
                "removed": [_row(entry, catalogue) for entry in done.removed],
                "held": [_row(entry, catalogue) for entry in done.held],
            }
        )
    else:
        _print("removed", done.removed, catalogue)
        _print("stays, in use by a live process", done.held, catalogue)
        typer.echo(f"size: {amount(done.size)} of at most {amount(limit)}")
    if stuck:
        raise CacheError(
            f"the cache {cache.root} is still larger than {amount(limit)}",
            "entries that nobody uses could not be removed",
            "See the warning above; most often the folder is read-only",
        )


def rm(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="The first digits of keys, at least 4 each.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="All entries of a model, or of one version: NAME/VERSION.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All entries, and what was set aside as damaged.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove entries; the next load that wants them builds them again.

    What a live process uses stays, and so does, with --model, what other models use too. Exits with 1 if something
    stays because it is in use.

    Examples:

    triton-unified cache rm 3fa91c

    triton-unified cache rm --model detector
    """
    if sum((bool(keys), model is not None, everything)) != 1:
        raise Refused(
            "it is not clear what to remove", "one of KEY..., --model and --all is needed", "Name one, and no other"
        )
    cache = opened()
    shared: list[Path] = []
    removed: list[Path] = []
    held: list[Path] = []
    with translated(cache):
        catalogue = Catalogue.of(cache.store)
        if model is not None:
            places, shared = _of_model(catalogue, model)
        else:
            places = cache.store.places() if everything else [place_of(cache, key) for key in dict.fromkeys(keys or ())]
        for place in places:
            (removed if _remove(cache, place) else held).append(place)
        if everything and not held:
            shutil.rmtree(cache.root / "quarantine", ignore_errors=True)
    if as_json:
        names = {"removed": removed, "held": held, "shared": shared}
        print_json({name: [place.name for place in there] for name, there in names.items()})
    else:
        _print_places("removed", removed, catalogue)
        _print_places("stays, other models use it too", shared, catalogue)
        _print_places("stays, in use by a live process", held, catalogue)
        typer.echo(f"entries: removed={len(removed)} held={len(held)}")
    if held:
        raise typer.Exit(1)


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise Refused(f'--max-size is "{text}"', str(error), "Write it so") from None


def _of_model(catalogue: Catalogue, name: str) -> tuple[list[Path], list[Path]]:
    """The entries of a model, and apart from them those that other models use too."""
    alone: list[Path] = []
    shared: list[Path] = []
    for entry in catalogue.of_model(name):
        others = [label for label in catalogue.models(entry.digest) if not is_model(label, name)]
        (shared if others else alone).append(entry.path)
    return alone, shared


def _remove(cache: Cache, place: Path) -> bool:
    """Remove an entry; False if a live process holds it."""
    try:
        return cache.store.remove(place)
    except FileNotFoundError:
        return True  # another process was quicker


def _print_places(what: str, places: Sequence[Path], catalogue: Catalogue) -> None:
    for place in places:
        if entry := catalogue.entries.get(place.name):
            _print(what, [entry], catalogue)
        else:
            typer.echo(f"{what}: damaged key={place.name[:SHORT]}")


def _print(what: str, entries: Sequence[Stored], catalogue: Catalogue) -> None:
    for entry in entries:
        models = one_line(", ".join(catalogue.models(entry.digest))) or "-"
        typer.echo(
            f"{what}: kind={entry.manifest.key.kind} model={models} size={amount(entry.manifest.size)} "
            f"key={entry.digest[:SHORT]}"
        )


def _row(entry: Stored, catalogue: Catalogue) -> dict[str, object]:
    return {
        "key": entry.digest,
        "kind": entry.manifest.key.kind,
        "models": list(catalogue.models(entry.digest)),
        "bytes": entry.manifest.size,
    }
