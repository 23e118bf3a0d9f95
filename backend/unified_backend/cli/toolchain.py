"""`triton-unified toolchain`: the environments that hold a framework each."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from unified_backend import logs
from unified_backend.errors import Refused, ToolchainError
from unified_backend.toolchains import environment
from unified_backend.toolchains.catalogue import TOOLCHAINS, Toolchain
from unified_backend.variables import toolchain_directory

__all__ = ["app"]

app = typer.Typer(
    help="Environments that hold one framework each, for conversions.", add_completion=False, no_args_is_help=True
)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Toolchains; all if none is named.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def show(as_json: AsJson = False) -> None:
    """List the toolchains there are, and where they are installed; a quick look finds most damage.

    Example:

    triton-unified toolchain list
    """
    root = toolchain_directory()
    rows = []
    for toolchain in TOOLCHAINS.values():
        python = environment.python_of(toolchain, root)
        rows.append(
            {
                "name": toolchain.name,
                "state": environment.state(toolchain, root),
                "folder": str(python.parent.parent) if python else None,
                "formats": sorted(toolchain.formats),
                "holds": toolchain.summary,
            }
        )
    rows += [
        {"name": old.name, "state": "outdated", "folder": str(old.folder), "formats": [], "holds": ""}
        for old in environment.installed(root)
        if not old.current
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['name']}\t{row['state']}\t{row['folder'] or '-'}\t{row['holds']}")


@app.command()
def install(
    names: Names = None,
    wheelhouse: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the lock's wheels, in place of an index.")
    ] = None,
) -> None:
    """Install toolchains ahead of the first model that needs them; one that is damaged is installed again.

    Example:

    triton-unified toolchain install tensorflow --wheelhouse /media/wheels
    """
    logs.to_standard_error(logging.INFO)
    if wheelhouse and not wheelhouse.is_dir():
        raise Refused(f"{wheelhouse} is no folder", "the wheels are looked for there", "Name a folder with wheels")
    root = toolchain_directory()
    for toolchain in _chosen(names):
        damaged = environment.state(toolchain, root) == "damaged"
        python = environment.install(toolchain, root, wheelhouse)
        typer.echo(f"{toolchain.name}\t{'installed again' if damaged else 'installed'}\t{python.parent.parent}")


@app.command()
def remove(names: Names = None) -> None:
    """Remove toolchains, outdated ones of the same name too.

    Example:

    triton-unified toolchain remove tensorflow
    """
    chosen = {toolchain.name for toolchain in _chosen(names)}
    for found in environment.installed(toolchain_directory()):
        if found.name in chosen:
            environment.remove(found)
            typer.echo(f"{found.name}\tremoved\t{found.folder}")


@app.command()
def verify(names: Names = None) -> None:
    """Read every file of installed toolchains and import what conversions need.

    Exits with 1 if one is damaged, or none is installed.

    Example:

    triton-unified toolchain verify
    """
    root, damaged = toolchain_directory(), False
    chosen = _chosen(names)
    if not any(environment.python_of(toolchain, root) for toolchain in chosen):
        wanted = " ".join(toolchain.name for toolchain in chosen)
        raise ToolchainError(
            f"no toolchain is installed of {wanted}",
            f"there is none in {root}",
            f"Run `triton-unified toolchain install {wanted}`",
        )
    for toolchain in chosen:
        if names is None and environment.python_of(toolchain, root) is None:
            typer.echo(f"{toolchain.name}\tmissing")
            continue
        problems = environment.verify(toolchain, root)
        damaged = damaged or bool(problems)
        for problem in problems:
            typer.echo(f"{toolchain.name}\tdamaged\t{problem}")
        if not problems:
            typer.echo(f"{toolchain.name}\twhole")
    if damaged:
        typer.echo("Install the damaged ones again: `triton-unified toolchain remove`, then `install`.", err=True)
        raise typer.Exit(1)


def _chosen(names: list[str] | None) -> list[Toolchain]:
    if unknown := [name for name in names or [] if name not in TOOLCHAINS]:
        raise Refused(
            f"there is no toolchain {', '.join(unknown)}", f"there are {', '.join(TOOLCHAINS)}", "Name one of these"
        )
    return [TOOLCHAINS[name] for name in names or TOOLCHAINS]
