"""`triton-unified convert`: what a load makes of a source, as an ONNX, MNN or OpenVINO file with a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from unified_backend import logs
from unified_backend.amounts import amount
from unified_backend.cli.opened import opened, translated
from unified_backend.cli.shown import AsJson, print_facts, print_json, print_rows
from unified_backend.cli.source import named
from unified_backend.converting import MODEL, REPORT
from unified_backend.converting import convert as converted
from unified_backend.engines.printed import natives_aside
from unified_backend.errors import ConfigError, Refused
from unified_backend.exports.form import FORMATS, Form
from unified_backend.exports.writing import FILES
from unified_backend.loading import ENGINES
from unified_backend.settings import Settings, is_session_option, read_settings

__all__ = ["HEADINGS", "cells", "convert", "pair"]

# Parameters of config.pbtxt that say what the model becomes, and none of how it is served.
_PARAMETERS = (
    *("signature", "tags", "inputs", "outputs", "names", "opset", "converter", "allow_unsafe", "verify", "tolerance"),
    *("conversion_seconds", "conversion_memory", "custom_op_library"),
    *("method", "arguments", "stateful"),
)
HEADINGS = ("output", "batch", "max abs", "max rel", "cosine", "top-1", "tolerance", "result")


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A model file, or a folder that holds one.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the model and report.json.")],
    signature: Annotated[str | None, typer.Option(help="Signature to convert (SavedModel, TensorFlow Lite).")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", "--tags", help="Tag of the SavedModel's graph; repeatable.")
    ] = None,
    inputs: Annotated[str | None, typer.Option(help="Tensors that are the inputs: image:0[1,224,224,3]")] = None,
    outputs: Annotated[str | None, typer.Option(help="Tensors that are the outputs: scores:0,boxes:0")] = None,
    opset: Annotated[int | None, typer.Option(metavar="N", help="ONNX opset to write.")] = None,
    to: Annotated[str, typer.Option(metavar="FORMAT", help=f"What to write: {', '.join(FORMATS)}.")] = "onnx",
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights as float16 (MNN, OpenVINO).")] = False,
    weight_bits: Annotated[
        int | None, typer.Option(metavar="8|4", help="Weights as integers of so many bits (MNN).")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of .npz files with inputs, in place of seeded ones.")
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of config.pbtxt; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a model to ONNX, as a load does it, and say how far its answers are from the source framework's.

    --to writes that model on in another engine's format, whose answers are compared with those of ONNX Runtime.

    Exits with 0 if they agree; 1 if they do not, or SOURCE is no model or cannot be converted; 2 if an option is wrong
    or SOURCE is not there.

    Example:

    triton-unified convert exported/saved_model --out converted --to mnn --fp16
    """
    source = named(source)
    if samples and not any(samples.glob("*.npz")):
        raise Refused(f"{samples} holds no samples", "samples are .npz files in a folder", "Name that folder")
    if out == Path():
        raise Refused("--out names the current folder", "the files would lie among others", "Name a folder for them")
    options = {"signature": signature, "tags": ",".join(tags or ()), "inputs": inputs, "outputs": outputs}
    options["opset"] = None if opset is None else str(opset)
    given = {**dict(map(pair, parameters or ())), **{name: value for name, value in options.items() if value}}
    if unknown := [name for name in given if name not in _PARAMETERS and not is_session_option(name)]:
        why = "it is none of a model's parameters, or one that says how it is served"
        raise Refused(f'parameter "{unknown[0]}" has no effect here', why, f"Choose of {', '.join(_PARAMETERS)}")
    form = Form(to, fp16, weight_bits)
    form.require_possible()
    cache = opened()
    natives_aside()
    logs.to_standard_error(logging.INFO)
    began = time.monotonic()
    with translated(cache):
        try:
            settings = read_settings(source.name, given, tuple(ENGINES))
            report = converted(source.absolute(), settings, samples, cache, out.absolute(), form)
        except ConfigError as error:
            raise Refused(error.what, error.why, error.do) from None
    if as_json:
        print_json(report)
    else:
        _print(report, out, settings, time.monotonic() - began)
    if not report["passed"] and settings.verify == "strict":
        raise typer.Exit(1)


def pair(text: str) -> tuple[str, str]:
    """A `--parameter`: its name and value.

    Raises:
        Refused: it has not got both.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Refused(f'"{text}" is no parameter', "it has no name and value", "Write --parameter NAME=VALUE")
    return name, value


def _print(report: Mapping[str, Any], out: Path, settings: Settings, seconds: float) -> None:
    facts = {"format": report["format"], "opset": str(report["opset"]), "nodes": str(report["nodes"])}
    if report["versions"]:
        facts["converted"] = (
            f"by {report['converter']} in {report['seconds']:.1f} s and {amount(report['peak_rss_mb'] * 1e6)} of memory"
        )
        facts["compared with"] = report["reference"]
    facts |= {f"note {number}": note for number, note in enumerate(report["notes"], 1)}
    print_facts(facts)
    print_rows(HEADINGS, map(cells, report["verified"]), right=HEADINGS[1:-1])
    if export := report.get("export"):
        _print_export(export)
    if report["passed"] or settings.verify == "warn":
        size = sum(file.stat().st_size for file in out.rglob("*") if file.name != REPORT)
        verdict = "PASSED" if report["passed"] else "FAILED, and written all the same, because verify is warn"
        if not report["verified"] and report["passed"] and not export:
            verdict = "PASSED: it is ONNX already, there is nothing to compare"
        model = out / FILES.get(report["to"], MODEL)
        typer.echo(f"{verdict}: {model} ({amount(size)}) seconds={seconds:.1f}")
    else:
        typer.echo(f"FAILED: {report['failure']}\nThe errors are in {out / REPORT}; no model was written.")


def _print_export(export: Mapping[str, Any]) -> None:
    kind = " with float16 weights" if export["fp16"] else ""
    kind = f" with {export['weight_bits']}-bit weights" if export["weight_bits"] else kind
    accepted = "by type" if export["tolerance"] is None else format(export["tolerance"], "g")
    facts = {
        "written": f"as {export['to']}{kind} by {export['by']} in {export['seconds']:.1f} s",
        "compared with": export["reference"].partition(" (")[0],
        "accepted": f"{accepted}: {export['tolerance_reason']}",
    }
    print_facts(facts | {f"note on {export['to']}": note for note in export["notes"]})
    print_rows(HEADINGS, map(cells, export["verified"]), right=HEADINGS[1:-1])


def cells(row: Mapping[str, Any]) -> list[str]:
    """One output's errors on one sample, as the row under HEADINGS."""

    def number(value: Any, form: str = ".1e") -> str:
        return "-" if value is None else value if isinstance(value, str) else format(value, form)

    batch = "-" if row["batch"] is None else str(row["batch"])
    errors = [number(row["max_abs"]), number(row["max_rel"]), number(row["cosine"], ".6f"), number(row["top1"], ".0%")]
    return [row["output"], batch, *errors, number(row["tolerance"]), "PASSED" if row["passed"] else "FAILED"]
