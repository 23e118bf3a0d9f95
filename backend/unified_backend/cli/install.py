"""`triton-unified install` and `uninstall`: the backend in a Triton that is started by other means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unified_backend.server import install as installation

__all__ = ["install", "uninstall"]

Backends = Annotated[
    Path, typer.Option(metavar="DIR", help="A Triton's backends directory, usually /opt/tritonserver/backends.")
]


def install(
    backends: Backends,
    python: Annotated[
        Path | None,
        typer.Option(metavar="VENV", help="Virtual environment to run in; without it, the Python that Triton finds."),
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to this package instead of copying it.")] = False,
) -> None:
    """Put the backend into a Triton's backends directory; an earlier installation is replaced.

    Example:

    triton-unified install --backends /opt/tritonserver/backends --python /opt/venv
    """
    done = installation.install(backends, python, link)
    verb = "replaced" if done.replaced else "installed"
    typer.echo(
        f"{verb}: {done.folder} code={'linked' if done.linked else 'copied'} python={done.python or 'of Triton'}"
    )
    if not (backends / "python").is_dir():
        typer.echo(f"note: {backends} has no `python` backend; Triton needs it there to run this one", err=True)


def uninstall(backends: Backends) -> None:
    """Take the backend out of a Triton's backends directory."""
    typer.echo(f"removed: {installation.uninstall(backends)}")
