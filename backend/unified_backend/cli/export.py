"""`triton-unified export`: a repository for Triton's native backends, out of what a load verified."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unified_backend import logs
from unified_backend.amounts import amount
from unified_backend.cli.opened import opened, translated
from unified_backend.cli.shown import AsJson, print_json, print_rows
from unified_backend.errors import Refused
from unified_backend.exports.native import REPORT, Row, Working, export_native, report, require_free
from unified_backend.server.preflight import check_repository, is_remote

__all__ = ["export"]

_HEADINGS = ("model", "version", "result", "backend", "file", "size", "sha256")
_DIGITS = 12  # of a digest, in a table


def export(
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="A model repository: a directory.")],
    native: Annotated[
        Path | None, typer.Option("--native", metavar="OUT", help="Folder for a repository of native backends.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME", help="Export this model only, of an ensemble its steps too; repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write REPOSITORY for Triton's own backends in C++: onnxruntime, tensorrt, openvino.

    Each model of this backend is loaded as a server would load it, and the very file that the load verified is written
    with the completed config. Models of other backends and ensembles are copied.

    Exits with 1 if a model could not be exported, the others being written; 2 if there is no such repository or model,
    or OUT holds files.

    Example:

    triton-unified export models --native native
    """
    logs.to_standard_error(logging.WARNING)
    if native is None:
        raise Refused(
            "export needs to know what to write",
            "the one form of a repository that it has is --native OUT, for Triton's own backends",
            "Give --native OUT; entries of the cache in one file are what `triton-unified cache export` writes",
        )
    if is_remote(repository):
        raise Refused(f"{repository} is not a directory", "export reads files", "Copy the repository to a directory")
    folder, out = Path(repository).absolute(), native.absolute()
    check_repository(str(folder), may_be_empty=False)
    require_free(out, folder)
    with opened() as cache, translated(cache):
        rows = _watched(folder, out, models or ())
    rows.sort(key=lambda row: (row.model, row.version or 0))
    if as_json:
        print_json({"out": str(out), **report(folder, rows)})
    else:
        _print(rows, out)
    if any(row.status == "failed" for row in rows):
        raise typer.Exit(1)


def _watched(repository: Path, out: Path, models: list[str] | tuple[()]) -> list[Row]:
    """Export, with a spinner on a terminal, and a line for each model and every ten seconds elsewhere."""
    console = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    with console.status("exporting") as status:
        for step in export_native(repository, out, models):
            if isinstance(step, Working):
                status.update(f"exporting {step.label}, {step.number} of {step.total}")
                if not console.is_terminal:
                    typer.echo(f"exporting: {step.label} {step.number} of {step.total}", err=True)
                continue
            rows.append(step)
            if step.log:
                typer.echo(step.log.rstrip(), err=True)
            if not console.is_terminal:
                typer.echo(f"{step.status}: {_label(step)} seconds={step.seconds:.1f}", err=True)
    return rows


def _print(rows: list[Row], out: Path) -> None:
    print_rows(_HEADINGS, [cells for row in rows for cells in _cells(row)], right=("version", "size"))
    for row in rows:
        for note in row.notes:
            typer.echo(f"note {_label(row)}: {note}")
        if row.reason:
            typer.echo(f"failed: {row.reason}")
    counts = Counter(row.status for row in rows)
    typer.echo("models: " + " ".join(f"{status}={count}" for status, count in sorted(counts.items())))
    if any(row.status != "failed" for row in rows):
        typer.echo(f"written: {out}, with {REPORT}")
    else:
        typer.echo("nothing was written")


def _label(row: Row) -> str:
    return row.model if row.version is None else f"{row.model}/{row.version}"


def _cells(row: Row) -> list[list[str]]:
    begin = [row.model, "-" if row.version is None else str(row.version), row.status, row.backend]
    return [
        [*begin, str(file["name"]), amount(int(file["size"])), str(file["sha256"])[:_DIGITS]] for file in row.files
    ] or [[*begin, "-", "-", "-"]]
