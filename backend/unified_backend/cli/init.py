"""`triton-unified init`: a model directory around a model file, with a config that says what may be set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unified_backend import logs
from unified_backend.amounts import amount
from unified_backend.cli.convert import pair
from unified_backend.cli.shown import AsJson, print_facts, print_json
from unified_backend.cli.source import found_in, named
from unified_backend.engines.printed import natives_aside
from unified_backend.errors import ConfigError, Refused, one_line
from unified_backend.new_model import NewModel, make_model, place_of

__all__ = ["init"]

_LISTED = 5  # files left behind that are named


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What clients will call the model.")],
    source: Annotated[
        Path, typer.Option("--from", metavar="PATH", help="The model: a file, or a folder that holds one.")
    ],
    into: Annotated[
        Path, typer.Option(metavar="REPOSITORY", help="The model repository; made if it is not there.")
    ] = Path("models"),
    link: Annotated[
        bool, typer.Option("--link/--copy", help="Hard links where the file system has them, in place of copies.")
    ] = False,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter to set in its config; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make REPOSITORY/NAME/ with the model in `1/` and a config.pbtxt that loads as it is.

    The config has one line that counts, the backend's, and in comments what a load will complete it with and the
    parameters that may be set. Nothing is built or converted: the model's file is read, not run.

    With --link, whoever writes over the original writes over the served file too.

    Exits with 0; 1 if PATH is no model, or one that no load would take; 2 if PATH is not there, NAME cannot be a
    model's, or the repository has it already.

    Example:

    triton-unified init detector --from exported/detector.onnx --into models
    """
    source = named(source)
    natives_aside()
    logs.to_standard_error(logging.WARNING)
    given = dict(map(pair, parameters or ()))
    folder = place_of(name, into)
    try:
        made = make_model(folder, found_in(source), source, given, link)
    except ConfigError as error:
        raise Refused(error.what, error.why, error.do) from None
    result = _result(name, made, into)
    if as_json:
        print_json(result)
    else:
        _print(result, made)


def _result(name: str, made: NewModel, repository: Path) -> dict[str, Any]:
    return {
        "model": name,
        "folder": str(made.folder),
        "format": made.format,
        "files": dict(made.files),
        "left_out": list(made.left),
        "notes": list(made.notes),
        "next": [f"triton-unified check {made.folder}", f"triton-unified serve {repository}"],
    }


def _print(result: Mapping[str, Any], made: NewModel) -> None:
    size = sum(made.files.values())
    files = next(iter(made.files)) if len(made.files) == 1 else f"{len(made.files)} files"
    facts = {
        "made": result["folder"],
        "format": result["format"],
        "model": f"{made.folder / '1'}: {files} ({amount(size)})",
        "config": f"{made.folder / 'config.pbtxt'}",
    }
    if made.left:
        more = f" and {len(made.left) - _LISTED} more" if len(made.left) > _LISTED else ""
        facts["left out"] = f"{', '.join(made.left[:_LISTED])}{more}: no part of the model; copy what it needs into 1/"
    print_facts(facts | {f"note {number}": note for number, note in enumerate(made.notes, 1)})
    typer.echo("\nnext:")
    for command in result["next"]:
        typer.echo(one_line(f"  {command}"))
