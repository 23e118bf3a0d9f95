"""`triton-unified cache push` and `pull`: entries to and from the remote tier, because a person wants it now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import typer

from unified_backend.cache import Cache
from unified_backend.cache.catalogue import SHORT, Catalogue, by_prefix, is_model, maker_of
from unified_backend.cache.fleet import drain, pull_entries, push_entries
from unified_backend.cache.outbox import Sent
from unified_backend.cache.remote import Remote
from unified_backend.cli.opened import opened, place_of, remote_of, translated
from unified_backend.cli.shown import AsJson, print_json, tracked
from unified_backend.errors import Refused

__all__ = ["conclude", "print_sent", "pull", "push"]

_WRONG = ("failed", "refused")

Keys = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY]...", help="The first digits of keys, at least 4 each.")
]


def push(keys: Keys = None, as_json: AsJson = False) -> None:
    """Push the entries that the remote cache lacks: those named, or all; and what waits to be pushed.

    Exits with 1 if one could not be pushed, 2 if no remote cache is configured.

    Example:

    TRITON_UNIFIED_REMOTE_CACHE=s3://models/cache triton-unified cache push
    """
    cache = opened()
    remote = remote_of(cache)
    with translated(cache):
        places = [place_of(cache, key) for key in dict.fromkeys(keys)] if keys else cache.store.places()
        sent = list(tracked("pushing what waits", drain(cache)))
        done = {row.digest for row in sent}
        rest = [place for place in places if place.name not in done]
        sent += tracked("pushing", push_entries(cache, remote, rest), len(rest))
    conclude({"remote": remote.url}, sent, as_json)


def pull(
    keys: Keys = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="All entries of a model, or of one version: NAME/VERSION.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pull entries from the remote cache: those named, those made for a model, or all.

    Exits with 1 if one could not be pulled, 2 if no remote cache is configured.

    Example:

    TRITON_UNIFIED_REMOTE_CACHE=s3://models/cache triton-unified cache pull --model detector
    """
    if keys and model is not None:
        raise Refused("it is not clear what to pull", "KEY and --model exclude each other", "Name one of them")
    cache = opened()
    remote = remote_of(cache)
    with translated(cache):
        names = _wanted(cache, remote, keys, model)
        sent = list(tracked("pulling", pull_entries(cache, remote, names), len(names)))
        here = {place.name for place in cache.store.places()}
    if lost := sum(row.outcome == "pulled" and row.digest not in here for row in sent):
        typer.echo(f"note: {lost} of the pulled entries went again: the cache holds {cache.limit} bytes", err=True)
    conclude({"remote": remote.url}, sent, as_json)


def print_sent(sent: Iterable[Sent]) -> None:
    """Print what became of each entry, and a last line with their numbers."""
    rows = list(sent)
    for row in rows:
        reason = f" reason={row.reason!r}" if row.reason else ""
        line = f"{row.outcome}: kind={row.kind or '-'} key={row.digest[:SHORT] or '-'}{reason}"
        typer.secho(line, fg="red" if row.outcome in _WRONG else None)
    counts = Counter(row.outcome for row in rows)
    typer.echo("entries: " + (" ".join(f"{outcome}={count}" for outcome, count in sorted(counts.items())) or "none"))


def conclude(context: Mapping[str, str], sent: Sequence[Sent], as_json: bool) -> None:
    """Print what became of each entry, and exit with 1 if one of them failed or was refused."""
    if as_json:
        rows = [{"key": row.digest, "kind": row.kind, "outcome": row.outcome, "reason": row.reason} for row in sent]
        print_json({**context, "entries": rows})
    else:
        print_sent(sent)
    if any(row.outcome in _WRONG for row in sent):
        raise typer.Exit(1)


def _wanted(cache: Cache, remote: Remote, keys: Sequence[str] | None, model: str | None) -> list[tuple[str, str]]:
    """Kind and digest of the entries in the store that are meant."""
    listed = remote.keys()
    there = {digest: (kind, digest) for kind, digest in listed}
    if keys:
        return [there[by_prefix(there, key, "in the remote cache")] for key in dict.fromkeys(keys)]
    if model is None:
        return list(there.values())
    users = Catalogue.of(cache.store).users
    found = [
        name
        for digest, name in there.items()
        if any(is_model(label, model) for label in users.get(digest, ()))
        or ((manifest := remote.manifest(*name)) and is_model(maker_of(manifest), model))
    ]
    if not found:
        raise Refused(
            f'the remote cache {remote.url} has no entry of a model "{model}"',
            "none was made for it",
            "`triton-unified cache pull` without a name pulls all",
        )
    return found
