"""`triton-unified bench`: how fast a model, a repository or a pipeline is served, and what would serve it faster."""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from unified_backend import logs, reports
from unified_backend.cli.bench_shown import Shown, print_comparison, print_result
from unified_backend.cli.opened import opened
from unified_backend.cli.shown import AsJson, print_json
from unified_backend.engines.printed import natives_aside
from unified_backend.errors import MeasurementError, Refused
from unified_backend.loading import ENGINES
from unified_backend.measuring.advice import advice
from unified_backend.measuring.compare import Comparison, compare
from unified_backend.measuring.data import require_data
from unified_backend.measuring.inputs import parse_shapes
from unified_backend.measuring.machine import machine, versions
from unified_backend.measuring.opening import Candidate, Plan
from unified_backend.measuring.perf_analyzer import find_perf_analyzer
from unified_backend.measuring.result import Result
from unified_backend.measuring.run import Measured, run
from unified_backend.measuring.saved import parse, read_result, write_result
from unified_backend.measuring.subjects import FORMS, Subject, subjects_of
from unified_backend.measuring.variants import Variant, combinations
from unified_backend.settings import PRECISIONS

__all__ = ["bench"]

T = TypeVar("T", int, str)

_ENGINES = ("auto", *ENGINES)


def bench(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|REPOSITORY|PIPELINE",
            help="A model file or directory, a repository, or a pipeline's YAML file; with --url a model's name.",
        ),
    ],
    engines: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Engines to compare: auto,onnxruntime,openvino,tensorrt.")
    ] = None,
    precisions: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Precisions to compare: fp32,fp16,int8.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="SIZES", help="Samples in a request: 1,4,16.")] = "1",
    concurrency: Annotated[str, typer.Option(metavar="COUNTS", help="Requests in flight: 1,4,16.")] = "1,4",
    instances: Annotated[str | None, typer.Option(metavar="COUNTS", help="Instances of each model: 1,2.")] = None,
    threads: Annotated[str | None, typer.Option(metavar="COUNTS", help="Threads of each instance: 1,2.")] = None,
    duration: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Of one point in one round; slow models get longer.")
    ] = 3.0,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Times that every point is measured; two show the noise.")
    ] = 3,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Inputs: images, .npz, .npy, or perf_analyzer's JSON.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:SIZES", help="Of an input with open dimensions: image:3,224,224; repeatable."),
    ] = None,
    protocol: Annotated[
        Literal["grpc", "http", "shm"], typer.Option(help="grpc, http, or shm: shared memory over gRPC.")
    ] = "grpc",
    url: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Measure the model as this running server has it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save every reading as JSON.")] = None,
    against: Annotated[
        Path | None, typer.Option("--compare", metavar="OLD.json", help="Say what became slower or faster since.")
    ] = None,
    fail_if_slower: Annotated[
        bool, typer.Option("--fail-if-slower", help="Exit with 1 if --compare finds something slower.")
    ] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML report.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a model in every way asked for, load it, and say which way is fastest and where the time goes.

    Each way gets a real Triton of its own, and perf_analyzer measures them in turns. What cannot be served here is
    skipped with its reason. Without --engines a pipeline's YAML file is measured as an ensemble and fused; with it,
    as an ensemble whose models run on that engine where it takes them. Inputs are --data, else the folder `samples`
    beside the versions, else random numbers.

    Exits with 0 if something was measured, 1 if nothing could be (or something is slower, with --fail-if-slower),
    2 if an option is wrong. Interrupted, it saves and shows what it has.

    Example:

    triton-unified bench models/classifier --engines onnxruntime,openvino --concurrency 1,4 --out bench.json
    """
    plan = Plan(
        _listed(batch, _count, "--batch"),
        _listed(concurrency, _count, "--concurrency"),
        duration,
        rounds,
        protocol,
        data,
        parse_shapes(shape or ()),
    )
    ways = combinations(
        _listed(engines, _one_of(_ENGINES), "--engines"),
        _listed(precisions, _one_of(PRECISIONS), "--precisions"),
        _listed(instances, _count, "--instances"),
        _listed(threads, _count, "--threads"),
    )
    if data:
        require_data(data)
    if fail_if_slower and not against:
        raise Refused("--fail-if-slower has nothing to go by", "there is no earlier result", "Add --compare OLD.json")
    old = read_result(against) if against else None
    if report:
        reports.require()
    for path in (out, report):
        _require_place(path)
    tool = find_perf_analyzer()
    natives_aside()
    logs.to_standard_error(logging.WARNING)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Shown() as shown:
        kind, candidates = _candidates(subject, ways, engines, url, Path(folder) / "pipeline", instances, threads)
        (Path(folder) / "served").mkdir()

        def result() -> Result:
            return _result(made, subject, kind, candidates, plan, measured, tool)

        try:
            run(candidates, plan, Path(folder) / "served", tool, shown, measured)
        except SystemExit:  # told to stop: see stopping.py
            shown.stop()
            if not measured.readings:
                typer.echo("interrupted: nothing was measured yet", err=True)
            else:
                _finish(result(), out, report, old, as_json, interrupted=True)
            raise
    done = result()
    if not done.points:
        reasons = "; ".join(dict.fromkeys(one.why for one in done.skipped))
        do = "Correct what the reasons name, and give inputs with --data where they are missing"
        raise MeasurementError(f"nothing of {subject} was measured", reasons, do)
    comparison = _finish(done, out, report, old, as_json)
    if fail_if_slower and comparison and comparison.slower:
        raise typer.Exit(1)


def _finish(
    done: Result, out: Path | None, report: Path | None, old: Result | None, as_json: bool, interrupted: bool = False
) -> Comparison | None:
    """Save and show; what is compared with, if there is something."""
    comparison = compare(old, done) if old else None
    if out:
        write_result(done, out)
    if report:
        reports.write(parse(done.to_json()), report)  # as it is read from a file
    if as_json:
        print_json(done.to_json() | ({"comparison": comparison.to_json()} if comparison else {}))
        return comparison
    if interrupted:
        typer.echo("interrupted: this is what was measured so far")
    print_result(done)
    if comparison:
        print_comparison(comparison)
    for name, path in (("saved", out), ("report", report)):
        if path:
            typer.echo(f"{name}: {path}")
    return comparison


def _candidates(
    named: str,
    ways: Sequence[Variant],
    engines: str | None,
    url: str | None,
    folder: Path,
    instances: str | None,
    threads: str | None,
) -> tuple[str, list[Candidate]]:
    if url:
        if any(way != Variant() for way in ways):
            raise Refused(
                "--url leaves nothing to choose",
                "the server serves the model as it does",
                "Leave out --engines, --precisions, --instances and --threads",
            )
        return "model", [Candidate(Variant(), name=named, url=url.split("://")[-1])]
    forms = FORMS[:1] if engines else FORMS
    with opened() as cache:
        kind, subjects = subjects_of(Path(named), folder, cache, forms)
    found = [Candidate(_over(one, way), one) for one in subjects for way in ways]
    return kind, list({candidate.id: candidate for candidate in found}.values())


def _over(subject: Subject, way: Variant) -> Variant:
    """A variant that names all that its model's config says; a pipeline's models have a config each."""
    if subject.kind == "pipeline":
        return Variant(way.engine, way.precision, way.instances, way.threads, form=subject.form)
    return Variant(way.engine, way.precision, way.instances, way.threads, form=subject.form).over(subject.config)


def _result(
    made: str,
    named: str,
    kind: str,
    candidates: Sequence[Candidate],
    plan: Plan,
    measured: Measured,
    tool: Path,
) -> Result:
    names = [candidate.subject.name if candidate.subject else candidate.name for candidate in candidates]
    inputs = list(dict.fromkeys(measured.inputs.values()))
    told = measured.inputs.items()
    done = Result(
        made=made,
        subject={"name": Path(named).stem or named, "kind": kind, "models": list(dict.fromkeys(names))},
        command=shlex.join(["triton-unified", *sys.argv[1:]]),
        machine=machine(),
        versions=versions(measured.triton, tool),
        inputs=inputs[0] if len(inputs) == 1 else "; ".join(f"{name}: {words}" for name, words in told),
        seconds=round(measured.seconds, 1),
        estimate_seconds=measured.estimate_seconds and round(measured.estimate_seconds, 1),
        options={"protocol": plan.protocol, "duration": plan.seconds, "rounds": plan.rounds},
        variants=measured.variants,
        points=measured.points,
        skipped=measured.skipped,
    )
    return done.with_advice(advice(done))


def _require_place(path: Path | None) -> None:
    """Refuse a file that could not be written at the end, before anything is measured."""
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        why = "it is a folder" if path.is_dir() else "there is no such folder"
        raise Refused(f"{path} cannot be written", why, "Name a file in a folder that is there")


def _listed(text: str | None, parse: Callable[[str], T], flag: str) -> list[T]:
    """The values of a list with commas, each once.

    Raises:
        Refused: one of them is none.
    """
    if text is None:
        return []
    try:
        return list(dict.fromkeys(parse(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise Refused(f"{flag} {text} is not understood", str(error), "Separate values by commas") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f'"{text}" is no number from 1')
    return int(text)


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f'"{text}" is none of {", ".join(names)}')
        return text

    return parse
