"""`triton-unified build`: the cache filled ahead of time, in CI or in an image build."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unified_backend import hosts, logs
from unified_backend.ahead import target
from unified_backend.amounts import amount
from unified_backend.building import Outcome, Target, targets
from unified_backend.building import build as built
from unified_backend.cache import Cache
from unified_backend.cache.fleet import drain, push_entries
from unified_backend.cache.outbox import Sent
from unified_backend.cli.cache.transfer import print_sent
from unified_backend.cli.opened import opened, translated
from unified_backend.cli.shown import AsJson, print_json, print_rows
from unified_backend.errors import Refused
from unified_backend.server.preflight import check_repository, is_remote

__all__ = ["build"]

_HEADINGS = ("model", "version", "result", "seconds", "reason")


def build(
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="A model repository: a directory.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="Build this model only; repeatable.")
    ] = None,
    version: Annotated[int | None, typer.Option(metavar="N", help="Build this version only.")] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Models built at once; each takes its memory.")] = 1,
    device: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="DEVICE", help="What to build for: a GPU as sm89 (TensorRT-RTX); this host if not given."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fill the cache with all that servers of REPOSITORY would build: every version of every model of this backend.

    Each is loaded in a process of its own, as a server would load it. With a remote cache, all of it is pushed before
    the command ends. Exits with 1 if a model failed or a push did, 2 if there is no such repository, model or device,
    or if a variable of the environment cannot be used.

    Example:

    triton-unified build models --jobs 4
    """
    logs.to_standard_error(logging.WARNING)
    ahead_of = _checked(device)
    if is_remote(repository):
        raise Refused(f"{repository} is not a directory", "build reads files", "Copy the repository to a directory")
    folder = Path(repository).absolute()
    check_repository(str(folder), may_be_empty=False)
    wanted, outcomes = targets(folder, models or (), version)
    cache = opened()
    with translated(cache):
        outcomes += _watched(wanted, jobs, ahead_of)
        outcomes = sorted(_still_there(cache, outcomes), key=lambda row: (row.model, row.version or 0))
        sent = _push(cache, outcomes)
    if as_json:
        print_json(
            {
                "repository": str(folder),
                "device": ahead_of or _host_device(),
                "models": [_json(row) for row in outcomes],
                "pushed": [dataclasses.asdict(row) for row in sent],
            }
        )
    else:
        print_rows(_HEADINGS, map(_cells, outcomes), right=("version", "seconds"))
        counts = Counter(row.status for row in outcomes)
        typer.echo("models: " + " ".join(f"{status}={count}" for status, count in sorted(counts.items())))
        if cache.remote:
            print_sent(sent)
    if any(row.status == "failed" for row in outcomes) or any(row.outcome == "failed" for row in sent):
        raise typer.Exit(1)


def _checked(device: str | None) -> str | None:
    """The architecture of a GPU that need not be here, as asked for; None for what this host is.

    Raises:
        Refused: it is neither.
    """
    if device and target(device):
        return device
    if device not in (None, "cpu", _host_device()):
        raise Refused(
            f'nothing can be built for "{device}" here',
            "ONNX Runtime optimises for the processor that it runs on",
            f"Build on such a host; this one builds for {_host_device()}, and TensorRT-RTX for GPUs such as sm89",
        )
    return None


def _host_device() -> str:
    return f"cpu:{hosts.cpu_features()}"


def _watched(wanted: Sequence[Target], jobs: int, device: str | None) -> list[Outcome]:
    """Build, with a spinner on a terminal, and a line for each model and every ten seconds elsewhere."""
    console = Console(stderr=True, highlight=False)
    outcomes: list[Outcome] = []
    with console.status(f"building: {len(wanted)} to go") as status:
        for step in built(wanted, jobs, device):
            if not isinstance(step, Outcome):
                typer.echo(f"building: {', '.join(target.label for target in step)}", err=True)
                continue
            outcomes.append(step)
            if step.log:
                typer.echo(step.log.rstrip(), err=True)
            if not console.is_terminal:
                typer.echo(f"{step.status}: {step.model}/{step.version} seconds={step.seconds:.1f}", err=True)
            status.update(f"building: {len(wanted) - len(outcomes)} to go")
    return outcomes


def _still_there(cache: Cache, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes, failed where a later model pushed an earlier one's entries out of a cache that is too small."""
    here = {place.name for place in cache.store.places()}
    reason = f"its entries had to make room for later ones: the cache holds {amount(cache.limit)}"
    return [
        row if here.issuperset(row.entries) else dataclasses.replace(row, status="failed", reason=reason)
        for row in outcomes
    ]


def _push(cache: Cache, outcomes: Sequence[Outcome]) -> list[Sent]:
    """Make the remote cache as complete as this one is, for these models."""
    if not cache.remote:
        return []
    sent = list(drain(cache))
    done = {row.digest for row in sent}
    wanted = {digest for row in outcomes if row.status != "failed" for digest in row.entries} - done
    places = [place for place in cache.store.places() if place.name in wanted]
    return sent + list(push_entries(cache, cache.remote, places))


def _cells(row: Outcome) -> list[str]:
    version = "-" if row.version is None else str(row.version)
    return [row.model, version, row.status, f"{row.seconds:.1f}", row.reason]


def _json(row: Outcome) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(row).items() if name != "log"}
