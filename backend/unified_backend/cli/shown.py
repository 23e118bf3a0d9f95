"""How commands show what they found: tables and facts for a person, lines for a pipe, JSON for a program."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from unified_backend.errors import one_line

__all__ = ["AsJson", "ago", "duration", "print_facts", "print_json", "print_rows", "tracked"]

Step = TypeVar("Step")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_CUT = 20  # characters
_WIDE = 110  # columns of a terminal that holds every column of a table as it is
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """A time span in its largest unit: `3 d`, `20 min`."""
    return next((f"{int(seconds // size)} {unit}" for size, unit in _UNITS if seconds >= size), "0 s")


def ago(unix_time: float) -> str:
    """How long ago that was."""
    return duration(max(0.0, time.time() - unix_time))


def print_json(value: Any) -> None:
    """Print a JSON value, for programs."""
    typer.echo(json.dumps(value, indent=2))


def print_rows(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = (), cut: Sequence[str] = ()
) -> None:
    """Print a table to a person, and lines with tabs between the cells to a pipe.

    Args:
        right: headings of columns of numbers.
        cut: headings of columns that a person needs the begin of only.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(map(one_line, row)))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    narrow = console.width < _WIDE
    for position, heading in enumerate(headings):
        table.add_column(
            heading,
            overflow="ellipsis" if heading in cut else "fold",
            no_wrap=position > 0,  # only names are broken: what is copied stays whole
            max_width=(_CUT // 2 if narrow else _CUT) if heading in cut else None,
            justify="right" if heading in right else "left",
        )
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console.print(table)


def tracked(doing: str, steps: Iterable[Step], total: int | None = None) -> Iterable[Step]:
    """The steps, with a bar on the terminal that goes when they are done."""
    console = Console(stderr=True)
    return track(steps, doing, total, console=console, transient=True, disable=not console.is_terminal)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values: aligned for a person, `name: value` to a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for name, value in facts.items():
            typer.echo(one_line(f"{name}: {value}"))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(Text(one_line(name), style="bold"), Text(one_line(value), overflow="fold"))
    console.print(table)
