"""`triton-unified doctor`: what on this machine would make a server hang, answer wrongly or fail unexplained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified_backend.doctor import Finding, examine

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    repository: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model repository to look into as well.")
    ] = None,
    backends: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A backends directory that `install` was used on.")
    ] = None,
    server: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The tritonserver to use; found by itself if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of findings.")] = False,
) -> None:
    """Check this machine, and a repository, for what Triton trips over without a clear word.

    Exits with 1 if a check failed; warnings alone leave it at 0.

    Example:

    triton-unified doctor --repository models
    """
    rows = list(examine(repository, backends, server))
    console = Console(highlight=False)
    if as_json:
        keys = ("check", "status", "found", "do")
        listed = [dict(zip(keys, (name, row.status, row.found, row.do), strict=True)) for name, row in rows]
        typer.echo(json.dumps(listed, indent=2))
    elif console.is_terminal:
        console.print(_table(rows))
    else:
        for name, row in rows:
            typer.echo(f"{row.status}: {name}: {row.found}" + (f". {row.do}" if row.do else ""))
    if any(row.status == "failed" for _, row in rows):
        raise typer.Exit(1)


def _table(rows: Sequence[tuple[str, Finding]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("check", "status", "found", "what to do"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", "status"))
    for name, row in rows:
        table.add_row(name, Text(row.status, style=_STYLES[row.status]), Text(row.found), Text(row.do))
    return table
