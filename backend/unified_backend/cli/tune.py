"""`triton-unified tune`: the settings under which a model serves best here, found and compared with what it has now."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from unified_backend import logs
from unified_backend.cli.opened import opened
from unified_backend.cli.shown import AsJson, print_facts, print_json, print_rows
from unified_backend.cli.source import named
from unified_backend.engines.printed import natives_aside
from unified_backend.errors import MeasurementError, Refused, one_line
from unified_backend.forms.reference import ENGINES
from unified_backend.measuring.machine import machine
from unified_backend.measuring.perf_analyzer import find_perf_analyzer
from unified_backend.measuring.subjects import Subject, subjects_of
from unified_backend.settings import PRECISIONS
from unified_backend.tuning.config_file import write_merged
from unified_backend.tuning.report import report, winning_fields
from unified_backend.tuning.run import Options, Run, run
from unified_backend.tuning.search import Goal, best_of
from unified_backend.values import parse_milliseconds, words

__all__ = ["tune"]

_NOTHING = "nothing was written"
_TRIED = ("tried", "in flight", "per second", "p50 ms", "p99 ms", "verdict")
_COMPARED = ("side by side", "in flight", "rounds", "per second", "low", "high", "p50 ms", "p99 ms")


def tune(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model's directory in a repository, or a model file or folder.")
    ],
    p99: Annotated[
        str | None, typer.Option(metavar="TIME", help="Latency that 99 of 100 requests must keep: 20ms, 0.02s.")
    ] = None,
    goal: Annotated[
        Literal["throughput", "latency"],
        typer.Option(help="Most inferences a second, or the lowest median latency (of one request at a time)."),
    ] = "throughput",
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests in flight; chosen by the model if not given.")
    ] = None,
    engines: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Engines to try; those that take the model if not given.")
    ] = None,
    precisions: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Precisions to try: fp16,int8; as it is if not given.")
    ] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="For all of it.")] = 180.0,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Inputs: images, .npz, .npy, or perf_analyzer's JSON.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Set what won in MODEL/config.pbtxt.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save what was found as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search for the settings that serve MODEL best on this machine, and print them as lines for config.pbtxt.

    Searched are the engine, instances, threads, max_batch_size, the queue delay of dynamic batching, and the precision
    if some are named. Each way is served by a real Triton and loaded by perf_analyzer. In the end the best is measured
    side by side with the config as it is, and that stays unless it is beaten by more than the noise.

    Exits with 0 if something was found or nothing is better, 1 if the model does not load or nothing keeps --p99,
    2 if an option is wrong. Interrupted, it says what was best so far, and writes nothing.

    Example:

    triton-unified tune models/classifier --p99 50ms --write
    """
    natives_aside()
    logs.to_standard_error(logging.WARNING)
    options = Options(
        Goal(goal, _milliseconds(p99)),
        concurrency,
        _names(engines, tuple(ENGINES), "--engines") or None,
        _names(precisions, PRECISIONS, "--precisions"),
        budget,
        data,
    )
    model = named(model).absolute()
    _require_writable(model, write, out)
    tool, done = find_perf_analyzer(), Run()
    with tempfile.TemporaryDirectory(prefix="tune-") as scratch:
        subject = _subject(model, Path(scratch) / "pipeline")
        (Path(scratch) / "served").mkdir()

        def found() -> dict[str, Any]:
            values: dict[str, Any] = report(subject.name, subject.config, options, done, machine())
            return values

        try:
            run(subject, options, Path(scratch) / "served", tool, _Told(done, as_json).tell, done)
        except SystemExit:  # told to stop: see stopping.py
            done.stopped = "interrupted"
            if done.rows:
                _finish(found(), _NOTHING if write else None, out, as_json)
            raise
    fields = winning_fields(done, subject.config)
    wrote = write_merged(model / "config.pbtxt", fields) if write and fields else _NOTHING if write else None
    _finish(found(), wrote, out, as_json)
    if not best_of(done.rows, options.goal):
        raise typer.Exit(1)


class _Told:
    """Lines about what happens, on standard error, with the seconds that went by."""

    def __init__(self, done: Run, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._done = done
        self._quiet = quiet

    def tell(self, text: str) -> None:
        if not self._quiet:
            seconds = time.monotonic() - self._done.began
            self._console.print(f"[{seconds:4.0f} s] {one_line(text)}", markup=False)


def _milliseconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_milliseconds(text)
    except ValueError as error:
        raise Refused(f"--p99 {text} is not understood", str(error), "Write --p99 20ms") from None


def _names(text: str | None, known: Sequence[str], option: str) -> tuple[str, ...]:
    names = words(text or "")
    if text is not None and not names:
        raise Refused(f"{option} is empty", "it names nothing to try", f"Name some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise Refused(f"{option} {name} is not known", f"there are {', '.join(known)}", "Name some of these")
    return tuple(dict.fromkeys(names))


def _require_writable(model: Path, write: bool, out: Path | None) -> None:
    """Refuse before anything is measured."""
    if write and not (model.is_dir() and any(child.is_dir() and child.name.isdecimal() for child in model.iterdir())):
        raise Refused(
            "--write has no effect here",
            f"{model} is no model's directory of a repository, and has no config.pbtxt",
            "Name such a directory, or leave --write out and paste the lines",
        )
    if out and not out.absolute().parent.is_dir():
        raise Refused(f"{out} cannot be written", "its folder is not there", "Make the folder, or name another one")


def _subject(model: Path, folder: Path) -> Subject:
    """The one model.

    Raises:
        Refused: it is a repository, a pipeline, or of sequences.
    """
    with opened() as cache:
        kind, found = subjects_of(model, folder, cache)
    names = ", ".join(one.name for one in found)
    if kind == "repository":
        raise Refused(f"{model} is a repository", f"it has {names}, and one model is tuned", "Name one of them")
    if kind == "pipeline":
        raise Refused(
            f"{model} is a pipeline", "its models are tuned one by one", "Name one of its models' directories"
        )
    if "sequence_batching" in found[0].config:
        raise Refused(
            f"{model.name} has sequence_batching",
            "its requests belong to sequences, which are not measured here",
            "Leave its settings as they are",
        )
    return found[0]


def _finish(values: Mapping[str, Any], wrote: str | None, out: Path | None, as_json: bool) -> None:
    values = {**values, "wrote": wrote}
    if out:
        try:
            out.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise MeasurementError(f"{out} cannot be written", str(error.strerror), "Name a file elsewhere") from None
    if as_json:
        print_json(values)
    else:
        _print(values)


def _print(values: Mapping[str, Any]) -> None:
    budget = f", p99 within {values['p99_ms']:g} ms" if values["p99_ms"] else ""
    host = values["machine"]
    facts = {
        "model": values["model"],
        "goal": f"{values['goal']}{budget}",
        "machine": ", ".join([host["cpu"], f"{host['cores']} cores", *host["gpu"]]),
        "inputs": values["inputs"],
        "searched": f"{len(values['tried'])} points in {values['seconds']:.0f} s"
        + (f"; {values['stopped']}" if values["stopped"] else ""),
        **{f"not tried: {name}": why for name, why in values["passed_over"].items()},
    }
    print_facts(facts)
    print_rows(_TRIED, [_tried_cells(row) for row in values["tried"]], right=_TRIED[1:-1])
    if values["compared"]:
        print_rows(_COMPARED, map(_compared_cells, values["compared"]), right=_COMPARED[1:])
    facts = {"result": values["conclusion"]}
    facts |= {f"note {number}": note for number, note in enumerate(values["notes"], 1)}
    print_facts(facts | ({"config.pbtxt": values["wrote"]} if values["wrote"] else {}))
    if values["lines"]:
        typer.echo("\n# config.pbtxt\n" + "\n".join(values["lines"]))


def _tried_cells(row: Mapping[str, Any]) -> list[str]:
    figures = ["-"] * 4
    if row["throughput"] is not None:
        figures = [str(row["concurrency"]), f"{row['throughput']:.1f}", f"{row['p50']:.2f}", f"{row['p99']:.2f}"]
    return [row["way"], *figures, "; ".join(filter(None, ("as it is" if row["as_it_is"] else "", row["verdict"])))]


def _compared_cells(row: Mapping[str, Any]) -> list[str]:
    speed = row["throughput"]
    return [
        row["what"],
        str(row["concurrency"]),
        str(row["rounds"]),
        *(f"{speed[name]:.1f}" for name in ("median", "low", "high")),
        f"{row['p50']['median']:.2f}",
        f"{row['p99']['median']:.2f}",
    ]
