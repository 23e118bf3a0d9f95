"""The `triton-unified` command: one module a subcommand, exit codes 0 done, 1 failed, 2 refused."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from unified_backend import __version__
from unified_backend.cli.commands import Commands
from unified_backend.errors import UnifiedError
from unified_backend.stopping import clean_up_when_stopped

__all__ = ["app", "main"]

app = typer.Typer(
    name="triton-unified",
    help="Drop any trained model into a Triton model repository and it serves.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _whole() -> None:
    """Makes a group of what has one command registered here."""


@app.command()
def version() -> None:
    """Print the version of this backend."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line; an error a user can act on is printed as a sentence, never as a traceback."""
    clean_up_when_stopped()
    try:
        app()
    except UnifiedError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", style="red", markup=False)
        sys.exit(error.exit_code)
