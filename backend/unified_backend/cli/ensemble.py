"""`triton-unified ensemble`: pipelines written into a repository, and drawn."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from unified_backend import logs
from unified_backend.cli.opened import opened
from unified_backend.engines.printed import natives_aside
from unified_backend.ensembles.definition import read_definition
from unified_backend.ensembles.graph import to_mermaid, to_svg
from unified_backend.ensembles.members import wired
from unified_backend.ensembles.writing import write_ensemble, write_fused
from unified_backend.errors import Refused

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Pipelines of models and stages: written into a repository, and drawn.",
)

_Definition = Annotated[Path, typer.Argument(metavar="FILE", help="The pipeline's YAML file.")]


@app.command()
def build(
    definition: _Definition,
    into: Annotated[Path, typer.Option(metavar="REPOSITORY", help="The model repository to write into.")],
    fused: Annotated[bool, typer.Option("--fused", help="One model that runs all steps in its process.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of models of these names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a pipeline into a repository, after checking that its models and stages fit one another.

    Every model is described as a load would describe it, so that what does not fit is an error here and not when the
    server starts. Exits with 0, with 1 if a model cannot be loaded, with 2 if there is something of the name already.

    Example:

    triton-unified ensemble build ensembles/ocr/ocr.yaml --into models --fused
    """
    natives_aside()
    logs.to_standard_error(logging.WARNING)
    with opened() as cache:
        found = wired(read_definition(definition), into, cache)
    written = (write_fused if fused else write_ensemble)(found, into, replace)
    if as_json:
        typer.echo(json.dumps({"name": found.definition.name, "written": [str(path) for path in written]}, indent=2))
    else:
        for path in written:
            typer.echo(f"written: {path}")


@app.command()
def graph(
    definition: _Definition,
    form: Annotated[Literal["svg", "mermaid"], typer.Option("--format", help="svg or mermaid.")] = "mermaid",
    repository: Annotated[
        Path | None, typer.Option(metavar="REPOSITORY", help="That has the models which the file does not bring.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; standard output if not given.")
    ] = None,
) -> None:
    """Draw a pipeline, with the name, type and shape of every tensor on the arrows.

    Example:

    triton-unified ensemble graph ensembles/ocr/ocr.yaml --format svg --out ocr.svg
    """
    natives_aside()
    logs.to_standard_error(logging.WARNING)
    with opened() as cache:
        found = wired(read_definition(definition), repository, cache)
    text = to_svg(found) if form == "svg" else to_mermaid(found)
    if out:
        try:
            out.write_text(text)
        except OSError as error:
            raise Refused(f"{out} cannot be written", str(error.strerror), "Name a file elsewhere") from None
    else:
        typer.echo(text, nl=False)
