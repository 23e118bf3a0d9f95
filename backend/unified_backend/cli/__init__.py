"""The `triton-unified` command: one module a subcommand, exit codes 0 done, 1 failed, 2 refused."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from unified_backend import __version__
from unified_backend.cli import cache, ensemble, toolchain
from unified_backend.cli.bench import bench
from unified_backend.cli.build import build
from unified_backend.cli.check import check
from unified_backend.cli.convert import convert
from unified_backend.cli.doctor import doctor
from unified_backend.cli.export import export
from unified_backend.cli.init import init
from unified_backend.cli.inspect import inspect
from unified_backend.cli.install import install, uninstall
from unified_backend.cli.optimize import optimize
from unified_backend.cli.serve import ServeCommand, serve
from unified_backend.cli.top import top
from unified_backend.cli.tune import tune
from unified_backend.errors import UnifiedError
from unified_backend.stopping import clean_up_when_stopped

__all__ = ["app", "main"]

app = typer.Typer(
    name="triton-unified",
    help="Drop any trained model into a Triton model repository and it serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


app.command(cls=ServeCommand)(serve)
app.command()(install)
app.command()(uninstall)
app.command()(init)
app.command()(check)
app.command()(inspect)
app.command()(convert)
app.command()(optimize)
app.command()(tune)
app.command()(doctor)
app.command()(top)
app.command()(build)
app.command()(export)
app.command()(bench)
app.add_typer(cache.app, name="cache")
app.add_typer(toolchain.app, name="toolchain")
app.add_typer(ensemble.app, name="ensemble")


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
