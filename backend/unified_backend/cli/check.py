"""`triton-unified check`: everything a load does, without a server."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from unified_backend import logs
from unified_backend.cli.opened import opened
from unified_backend.engines.printed import natives_aside
from unified_backend.errors import UnifiedError
from unified_backend.gpus import gpu_of
from unified_backend.loading import Loaded
from unified_backend.models import describe, load
from unified_backend.pbtxt import gives_max_batch_size, to_pbtxt
from unified_backend.repository import ensemble_steps, our_config, version_folder
from unified_backend.serving.executor import Plan
from unified_backend.serving.warmup import warm_up

__all__ = ["check"]


def check(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A model's directory in a repository.")],
    version: Annotated[
        int | None, typer.Option(metavar="N", help="The version to load; the highest if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Load a model as the server would, and say what was found, chosen and completed.

    Of a Triton ensemble, which Triton itself runs, say whether the models of its steps are there.

    Exits with 0 if the model loads, 1 if it does not, 2 if there is nothing to load, or if a variable of the
    environment cannot be used.

    Example:

    triton-unified check models/detector.unified
    """
    natives_aside()
    logs.to_standard_error(logging.WARNING)
    try:
        model_dir = model_dir.absolute()
        label, folder = version_folder(model_dir, version)
        steps = ensemble_steps(label, model_dir)
        result = {} if steps else _result(label, folder, our_config(label, model_dir))
    except UnifiedError as error:
        if not as_json:
            raise
        typer.echo(
            json.dumps({"loads": False, "error": {"what": error.what, "why": error.why, "do": error.do}}, indent=2)
        )
        raise typer.Exit(error.exit_code) from None
    if steps:
        _print_ensemble(label, steps, as_json)
    elif as_json:
        typer.echo(json.dumps({"loads": True, **result}, indent=2))
    else:
        _print(result)


def _result(label: str, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Load, warm up, and report as JSON values."""
    began = time.monotonic()
    given = gives_max_batch_size(folder.parent / "config.pbtxt")
    with opened() as cache:
        loaded = load(describe(label, folder, config, cache, given, gpu_of(config)), cache)
        with loaded.described.report.phase("warm_up"):
            plan = warm_up(loaded, cache)
        loaded.runner.close()
    return {"model": label, **_facts(loaded, plan, folder), "total_seconds": round(time.monotonic() - began, 3)}


def _facts(loaded: Loaded, plan: Plan, folder: Path) -> dict[str, Any]:
    described, report = loaded.described, loaded.described.report
    return {
        "format": described.source.format,
        "files": [path.relative_to(folder).as_posix() for path in described.source.files],
        "batching": f"{described.batching.verdict.value}: {described.batching.reason}",
        "engine": loaded.engine,
        "precision": described.canonical.precision or "as it came",
        "engine_reason": loaded.reason,
        "ladder": [dataclasses.asdict(rung) for rung in loaded.ladder],
        "threads": loaded.threads.intra_op,
        "requests": "concatenated" if plan.concatenate else "looped",
        "notes": report.notes,
        "cache": report.lookups,
        "seconds": report.seconds,
        "config": to_pbtxt(described.config),
    }


def _print_ensemble(label: str, steps: Mapping[str, str], as_json: bool) -> None:
    """What is known of an ensemble: whether it loads, its models decide."""
    if as_json:
        typer.echo(json.dumps({"loads": None, "model": label, "platform": "ensemble", "steps": steps}, indent=2))
        return
    typer.echo(f"model: {label}\nplatform: ensemble, which Triton itself runs")
    for name, backend in steps.items():
        typer.echo(f"step: {name} (backend {backend})")
    typer.echo("\nits models are there; whether they load, a check of each tells")


def _print(result: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    seconds = "  ".join(f"{phase} {value:.3f}" for phase, value in result["seconds"].items())
    rows = {
        "model": result["model"],
        "format": f"{result['format']} ({', '.join(result['files'])})",
        "batching": result["batching"],
        "engine": result["engine"],
        "precision": result["precision"],
        **{f"rung {rung['engine']}": _rung(rung) for rung in result["ladder"]},
        "execution": f"{result['threads']} threads, requests {result['requests']}",
        **{f"note {number}": note for number, note in enumerate(result["notes"], 1)},
        "cache": "  ".join(f"{kind} {state}" for kind, state in result["cache"].items()),
        "seconds": f"{seconds}  total {result['total_seconds']:.3f}",
    }
    if console.is_terminal:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in rows.items():
            table.add_row(f"[bold]{name}[/bold]", value)
        console.print(table)
        console.print("\n[bold]config.pbtxt, completed[/bold]")
        console.print(Syntax(result["config"], "protobuf", background_color="default"))
        console.print("[green]loads[/green]")
    else:
        for name, value in rows.items():
            typer.echo(f"{name}: {value}")
        typer.echo(f"\n# config.pbtxt, completed\n{result['config']}\nloads")


def _rung(rung: Mapping[str, Any]) -> str:
    return f"{'taken' if rung['taken'] else 'not taken'}: {rung['reason']}"
