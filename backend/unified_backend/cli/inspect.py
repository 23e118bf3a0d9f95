"""`triton-unified inspect`: what a model file says of itself, without the framework that wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unified_backend.amounts import amount
from unified_backend.cli.source import folder_of, found_in, named
from unified_backend.errors import ConfigError, Refused, SourceError, one_line
from unified_backend.formats import FORMATS, Source
from unified_backend.formats.description import Description
from unified_backend.formats.integrity import check
from unified_backend.formats.parameters import refuse_unused
from unified_backend.settings import Settings, read_settings
from unified_backend.tensors import TensorSpec

__all__ = ["inspect"]

_TENSOR = {"name", "dtype", "shape"}
_NAMELESS = re.compile(r"unk__\d+")  # what tf2onnx calls a dimension without a name


def inspect(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A model file, or a folder that holds one.")],
    signature: Annotated[str | None, typer.Option(help="The signature to show as served.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", "--tags", help="Tag of the SavedModel's graph; repeatable.")
    ] = None,
    inputs: Annotated[str | None, typer.Option(help="Tensors that are the inputs: image:0[1,224,224,3]")] = None,
    outputs: Annotated[str | None, typer.Option(help="Tensors that are the outputs: scores:0,boxes:0")] = None,
    graph: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Write a picture of the graph of the ONNX model.")
    ] = None,
    netron: Annotated[
        bool, typer.Option("--netron", help="Show the model in the viewer Netron, on this host alone, until Ctrl-C.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model's format, inputs, outputs and all that its file tells, without loading it.

    The picture has at most about 60 boxes: nodes of one scope (/layer1/conv/...) share one where there are more, and
    neighbours in a chain where names have no scope. Of other formats than ONNX it shows what a load or `convert` made.

    Exits with 0 if it is a model, even one that a load would refuse, which a note tells; 1 if it is damaged or none,
    2 if there is no such file.

    Example:

    triton-unified inspect exported/saved_model

    triton-unified inspect detector.onnx --graph detector.svg
    """
    if graph and netron:
        raise Refused("--graph and --netron contradict each other", "one writes a file and ends", "Keep one of them")
    source = named(source)
    asked = {"signature": signature, "tags": ",".join(tags or ()), "inputs": inputs, "outputs": outputs}
    try:
        settings = read_settings(source.name, {name: value for name, value in asked.items() if value}, ())
        if netron:
            from unified_backend.cli.graph import show_in_netron  # asks for all engines, which a look does not need

            show_in_netron(found_in(source).path)
            return
        result = _result(source, settings)
        if graph:
            from unified_backend.cli.graph import drawn

            result["graph"] = drawn(source, settings, graph)
    except ConfigError as error:
        raise Refused(error.what, error.why, error.do) from None
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
    folder, found = folder_of(path), found_in(path)
    unread = check(found)
    refuse_unused(found.format, settings, path.name)
    described = _described(found, settings)
    return {
        "format": found.format,
        "files": {file.relative_to(folder).as_posix(): file.stat().st_size for file in found.files},
        "inputs": [_row(spec, described) for spec in described.inputs],
        "outputs": [_row(spec, described) for spec in described.outputs] or _named_outputs(described.facts),
        "notes": [*described.notes, *unread],
        "facts": described.facts,
    }


def _described(found: Source, settings: Settings) -> Description:
    """The description; of what a load would refuse, the facts alone and the refusal as a note.

    Raises:
        SourceError: it cannot be read, or has not got what was asked for.
    """
    try:
        return FORMATS[found.format].describe(found.path, settings, found.label)
    except SourceError as error:
        if error.facts is None or settings.signature or settings.tags or settings.inputs or settings.outputs:
            raise
        what = error.what.removeprefix(f"{found.label}: ")
        return Description((), (), facts=error.facts, notes=(f"it does not load: {what}: {error.why}. {error.do}",))


def _named_outputs(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The outputs of a Keras model, whose file names them; what they are, Keras knows when it has loaded them."""
    names = facts.get("outputs")
    names = names if isinstance(names, list) else []
    return [{"name": name, "dtype": None, "shape": None, "tensor": name} for name in names]


def _row(spec: TensorSpec, described: Description) -> dict[str, Any]:
    shape = None if spec.shape is None else [-1 if _open(size) else size for size in spec.shape]
    dtype = None if spec.name in described.untyped else spec.dtype
    return {"name": spec.name, "dtype": dtype, "shape": shape, "tensor": described.inner.get(spec.name, spec.name)}


def _open(size: int | str | None) -> bool:
    return size is None or (isinstance(size, str) and _NAMELESS.fullmatch(size) is not None)


def _print(result: Mapping[str, Any]) -> None:
    """All of it for a person: what is in the file is somebody else's, so nothing of it goes to a terminal unchecked."""
    console = Console(highlight=False)
    typer.echo(f"format: {result['format']}")
    for name, size in result["files"].items():
        typer.echo(one_line(f"file: {name} ({amount(size)})"))
    rows = [(side[:-1], *_cells(row)) for side in ("inputs", "outputs") for row in result[side]]
    if console.is_terminal:
        table = Table("", "name", "type", "shape", "tensor in the file", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(Text(one_line(cell), overflow="fold") for cell in row))
        console.print(table)
    else:
        for side, *cells in rows:
            typer.echo(one_line("  ".join((f"{side}:", *cells))))
    if graph := result.get("graph"):
        typer.echo(one_line(f"graph: {graph['file']} ({graph['nodes']} nodes in {graph['boxes']} boxes)"))
    for line in (*(f"note: {note}" for note in result["notes"]), *_lines(result["facts"])):
        typer.echo(one_line(line))


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    if row["dtype"] is None and row["shape"] is None:
        return row["name"], "unknown", "unknown", row["tensor"]
    return row["name"], row["dtype"] or "unknown", _shape(row), row["tensor"]


def _lines(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested facts as indented `name: value` lines."""
    lines = []
    for name, each in value.items():
        if isinstance(each, Mapping) and "shape" in each and each.keys() <= _TENSOR:
            lines.append(f"{indent}{name}: {_tensor(each)}")
        elif isinstance(each, Mapping) and each:
            lines += [f"{indent}{name}:", *_lines(each, f"{indent}  ")]
        elif isinstance(each, list) and each and isinstance(each[0], Mapping):
            for number, part in enumerate(each):
                lines += [f"{indent}{name} {number}:", *_lines(part, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name}: {_text(name, each)}")
    return lines


def _tensor(row: Mapping[str, Any]) -> str:
    """A tensor in one line: type, shape, and its name in the graph if it has another there."""
    return "  ".join(filter(None, (row["dtype"], _shape(row), row.get("name"))))


def _shape(row: Mapping[str, Any]) -> str:
    return "unknown rank" if row["shape"] is None else str(row["shape"])


def _text(name: str, value: Any) -> str:
    if isinstance(value, list) and name != "shape":
        value = ", ".join(map(str, value))
    return "none" if value in (None, {}, "") else str(value)
