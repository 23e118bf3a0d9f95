"""`triton-unified optimize`: what optimisation makes of a model's graph, and how far its answers move."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unified_backend import logs
from unified_backend.amounts import amount
from unified_backend.cli.convert import HEADINGS, cells, pair
from unified_backend.cli.opened import opened, translated
from unified_backend.cli.shown import AsJson, print_facts, print_json, print_rows
from unified_backend.cli.source import named
from unified_backend.converting import require_usable, write_folder
from unified_backend.engines.printed import natives_aside
from unified_backend.errors import ConfigError, Refused
from unified_backend.optimising import optimise

__all__ = ["optimize"]

_LAYERS = ("layer quantised alone", "operator", "max rel", "1 - cosine")
_STEPS = ("step", "nodes", "initializers", "size", "seconds", "portable")


def optimize(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model file, its folder, or a model's directory in a repository.")
    ],
    level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="graph_optimization: none, basic, extended or all.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="PRECISION", help="precision: fp32, tf32, fp16, bf16, int8, fp8 or auto.")
    ] = None,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Quantise each layer alone: what does it cost?"),
    ] = False,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of config.pbtxt; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the portable model and report.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's graph before and after each step of optimisation, and how far its answers move.

    The first step stays ONNX, and what it writes runs anywhere. The second is ONNX Runtime's own graph, which the CPU
    serves: it may hold operators that other engines have not, and is never handed to one.

    Exits with 0 if the answers agree; 1 if they do not, or MODEL is no model; 2 if an option is wrong or MODEL is not
    there.

    Example:

    triton-unified optimize models/detector.unified --precision int8 --layers
    """
    model = named(model)
    given = dict(map(pair, parameters or ())) | ({"graph_optimization": level} if level is not None else {})
    given |= {"precision": precision} if precision is not None else {}
    if layers and given.get("precision") != "int8":
        raise Refused("--layers has no effect here", "it quantises layers", "Add --precision int8")
    if "engine" in given:
        raise Refused('parameter "engine" has no effect here', "every step is shown", "Leave it out")
    if out:
        require_usable(out.absolute())
    cache = opened()
    natives_aside()
    logs.to_standard_error(logging.WARNING)
    with translated(cache):
        try:
            done = optimise(model.absolute(), given, cache, layers)
        except ConfigError as error:
            raise Refused(error.what, error.why, error.do) from None
        if out:
            write_folder(out.absolute(), done.path, done.report)
    if as_json:
        print_json(done.report)
    else:
        _print(done.report)
    if not done.report["passed"]:
        raise typer.Exit(1)


def _print(report: Mapping[str, Any]) -> None:
    steps = report["steps"]
    facts = {name: report[name] for name in ("model", "format", "level")}
    print_facts(facts | {f"note {number}": note for number, note in enumerate(report["notes"], 1)})
    print_rows(_STEPS, map(_step_cells, steps), right=_STEPS[1:-1])
    for step in steps[1:]:
        print_facts(dict(_changes(step)))
    names = [step["name"] for step in steps]
    operators = sorted({name for step in steps for name in step["operators"]})
    rows = [[name, *(str(step["operators"].get(name, "-")) for step in steps)] for name in operators]
    print_rows(("operator", *names), rows, right=names)
    if report["layers"]:
        rows = [
            [row["layer"], row["operator"], f"{row['max_rel']:.1e}", f"{1 - row['cosine']:.1e}"]
            for row in report["layers"]
        ]
        print_rows(_LAYERS, rows, right=_LAYERS[2:])
    compared = [[step["name"], *cells(row)] for step in steps for row in step["verified"]]
    if compared:
        print_rows(("step", *HEADINGS), compared, right=HEADINGS[1:-1])


def _step_cells(step: Mapping[str, Any]) -> Sequence[str]:
    portable = "yes" if step["portable"] else "no: operators of ONNX Runtime's own"
    counts = (str(step["nodes"]), str(step["initializers"]), amount(step["bytes"]))
    return (step["name"], *counts, f"{step['seconds']:.2f}", portable)


def _changes(step: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, operators in step["changes"].items():
        if operators:
            said = "removed or replaced" if kind == "removed" else kind
            yield f"{step['name']}: {said}", ", ".join(f"{name} {count}" for name, count in operators.items())
