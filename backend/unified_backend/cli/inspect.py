"""`triton-unified inspect`: what a model file says of itself, without the framework that wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unified_backend import loading
from unified_backend.errors import Refused, SourceError
from unified_backend.formats import FORMATS, find_source
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["inspect"]


def inspect(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A model file, or a folder that holds one.")],
    signature: Annotated[str | None, typer.Option(help="The signature to show as served.")] = None,
    tags: Annotated[str, typer.Option(help="Tags of the SavedModel's graph, comma-separated.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model's format, inputs, outputs and all that its file tells, without loading it.

    Exits with 0 if it is a model, 1 if it is damaged or none, 2 if there is no such file.

    Example:

    triton-unified inspect exported/saved_model
    """
    if not source.exists():
        raise Refused(f"{source} is not there", "there is no such file or folder", "Name a model file or its folder")
    chosen = tuple(tag.strip() for tag in tags.split(",") if tag.strip())
    try:
        result = _result(source, Settings(signature=signature, tags=chosen))
    except SourceError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"error": {"what": error.what, "why": error.why, "do": error.do}}, indent=2))
        raise typer.Exit(error.exit_code) from None
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print(result)


def _result(path: Path, settings: Settings) -> dict[str, Any]:
    folder, chosen = (path, None) if path.is_dir() else (path.parent, path.name)
    with loading.open_cache() as cache:
        found = find_source(path.name, folder, cache.store.memo, chosen)
    described = FORMATS[found.format].describe(found.path, settings, path.name)
    return {
        "format": found.format,
        "files": {file.relative_to(folder).as_posix(): file.stat().st_size for file in found.files},
        "inputs": [_row(spec, described.inner) for spec in described.inputs],
        "outputs": [_row(spec, described.inner) for spec in described.outputs],
        "notes": list(described.notes),
        "facts": described.facts,
    }


def _row(spec: TensorSpec, inner: Mapping[str, str]) -> dict[str, Any]:
    shape = None if spec.shape is None else [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "dtype": spec.dtype, "shape": shape, "tensor": inner.get(spec.name, spec.name)}


def _print(result: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    typer.echo(f"format: {result['format']}")
    typer.echo(f"files: {', '.join(f'{name} ({size} bytes)' for name, size in result['files'].items())}")
    if console.is_terminal:
        table = Table("", "name", "type", "shape", "tensor in the file", box=None, pad_edge=False)
        for side in ("inputs", "outputs"):
            for row in result[side]:
                table.add_row(side[:-1], *_cells(row))
        console.print(table)
    else:
        for side in ("inputs", "outputs"):
            for row in result[side]:
                typer.echo("  ".join((f"{side[:-1]}:", *_cells(row))))
    for note in result["notes"]:
        typer.echo(f"note: {note}")
    for line in _lines(result["facts"]):
        typer.echo(line)


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    shape = "unknown rank" if row["shape"] is None else str(row["shape"])
    return row["name"], row["dtype"], shape, row["tensor"]


def _lines(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested facts as indented `name: value` lines."""
    lines = []
    for name, each in value.items():
        if isinstance(each, Mapping) and each:
            lines += [f"{indent}{name}:", *_lines(each, f"{indent}  ")]
        elif isinstance(each, list) and each and isinstance(each[0], Mapping):
            for number, part in enumerate(each):
                lines += [f"{indent}{name} {number}:", *_lines(part, f"{indent}  ")]
        else:
            text = ", ".join(map(str, each)) if isinstance(each, list) else ("none" if each in (None, {}, "") else each)
            lines.append(f"{indent}{name}: {text}")
    return lines
