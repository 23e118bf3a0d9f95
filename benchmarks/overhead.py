"""What serving costs: the unified backend beside hand-written Python models and ONNX Runtime in this process.

    python benchmarks/overhead.py --models mlp,thin --rounds 5

Every figure is a ratio of two measurements taken seconds apart, so that it holds on a busy machine too. Each round has
a server of its own: where an instance's memory happens to lie is worth up to a fifth, for as long as it lives. Exits
with 1 if a promise of the documentation is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from measuring.in_process import in_process, open_session
from measuring.models import MODELS, Model, model_file
from measuring.report import IN_PROCESS, PROMISES, Cell, table
from measuring.repository import UNIFIED, served_name, write_repository
from onnxruntime import InferenceSession
from rich.console import Console
from unified_backend import hosts
from unified_backend.errors import UnifiedError
from unified_backend.measuring.perf_analyzer import PROTOCOLS, STARTUP_SECONDS, Load, find_perf_analyzer, measure
from unified_backend.measuring.serving import serving
from unified_backend.server.run import RunningServer

BACKENDS = ("naive", UNIFIED, "concat", "constant", IN_PROCESS)
STARTUP_OF_SERVER_SECONDS = 15.0
# A cell that breaks a promise is measured again, this many times as often: one disturbed round decides nothing.
SECOND_LOOK = 2

console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def main() -> int:
    options = _options()
    tool = find_perf_analyzer()
    cells = [Cell(m, p, c) for m in options.models for p in options.protocols for c in options.concurrency]
    console.print(f"{len(cells)} cells, {options.rounds} rounds: about {_estimate(cells, options) / 60:.1f} minutes")
    bench = _Bench(tool, options)
    try:
        bench.measure(cells, options.rounds)
        doubtful = [cell for cell in cells if any(promise.broken_by(cell) for promise in PROMISES)]
        if doubtful:
            console.print(f"{len(doubtful)} cells break a promise: measuring them again")
            bench.measure(doubtful, SECOND_LOOK * options.rounds)
    except UnifiedError as error:
        print(error, file=sys.stderr)
        return 1
    verdicts = [verdict for promise in PROMISES if (verdict := promise.verdict(cells))]
    console.print(table(cells))
    for verdict in verdicts:
        word = "[green]pass[/green]" if verdict.kept else "[red]FAIL[/red]"
        console.print(f"{word}  {verdict.text} ({verdict.cells} cells)\n      {_escaped(verdict.figures)}")
    if options.json:
        report = {
            "machine": bench.machine,
            "cells": [asdict(c) for c in cells],
            "promises": [asdict(v) for v in verdicts],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(verdict.kept for verdict in verdicts) else 1


class _Bench:
    """The grid's measurements, each round against a server of its own, with a line of progress a cell.

    Attributes:
        machine: what the figures were taken with and on; empty before the first round.
    """

    def __init__(self, tool: Path, options: _Options) -> None:
        self.tool = tool
        self.options = options
        self.machine: dict[str, str] = {}
        self.start = time.monotonic()

    def measure(self, cells: Sequence[Cell], rounds: int) -> None:
        """Add `rounds` readings of each backend to every cell."""
        names = list(dict.fromkeys(cell.model for cell in cells))
        grid = [(MODELS[m], b) for m in names for b in self.options.backends if b != IN_PROCESS and _measures(m, b)]
        for turn in range(rounds):
            sessions = {name: open_session(model_file(MODELS[name]), self.options.threads) for name in names}
            with _serving(grid, self.options.threads) as server:
                if not self.machine:
                    self.machine = _machine(server, self.tool, self.options.threads)
                    console.print(*(f"{key}: {value}" for key, value in self.machine.items()), sep="\n")
                for number, cell in enumerate(cells, 1):
                    self._measure(cell, turn, server, sessions)
                    minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
                    ratio = cell.speed(UNIFIED, "naive")
                    found = f"unified/naive {ratio}" if ratio else ""
                    place = f"round {turn + 1}/{rounds}  {number}/{len(cells)}"
                    console.print(f"{minutes:3d}:{seconds:02d}  {place}  {cell.name}  {_escaped(found)}")

    def _measure(self, cell: Cell, turn: int, server: RunningServer, sessions: Mapping[str, InferenceSession]) -> None:
        """Add one reading of each backend to a cell."""
        model = MODELS[cell.model]
        seconds = _seconds(model, cell.concurrency, self.options.seconds)
        backends = [backend for backend in self.options.backends if _measures(cell.model, backend)]
        # Each backend comes first once, so that none always runs behind the same neighbour.
        first = turn % len(backends)
        for backend in backends[first:] + backends[:first]:
            if backend == IN_PROCESS:
                feed = {"input": np.zeros((1, *model.input_shape), model.dtype)}
                reading = in_process(sessions[model.name], feed, cell.concurrency, seconds)
            else:
                url = server.options.url("http" if cell.protocol == "http" else "grpc")
                name = served_name(model, backend)
                load = Load(name, url, cell.protocol, cell.concurrency, output_bytes=model.output_bytes)
                reading = measure(self.tool, load, seconds)
            cell.readings.setdefault(backend, []).append(reading)


@contextmanager
def _serving(grid: Sequence[tuple[Model, str]], threads: int) -> Iterator[RunningServer]:
    """One server with every model of the grid loaded; it lives as long as the block."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        write_repository(Path(folder) / "models", grid, threads)
        with serving(Path(folder) / "models", Path(folder)) as server:
            yield server


class _Options(argparse.Namespace):
    models: list[str]
    protocols: list[str]
    backends: list[str]
    concurrency: list[int]
    rounds: int
    seconds: float
    threads: int
    json: Path | None


def _options() -> _Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def subset(flag: str, every: Sequence[str], text: str) -> None:
        parser.add_argument(flag, type=lambda value: _chosen(value, every), default=list(every), help=text)

    subset("--models", tuple(MODELS), f"comma-separated, of {', '.join(MODELS)}")
    subset(
        "--protocols", PROTOCOLS, f"comma-separated, of {', '.join(PROTOCOLS)} (shm: system shared memory over gRPC)"
    )
    subset("--backends", BACKENDS, f"comma-separated, of {', '.join(BACKENDS)} (constant: with the model mlp only)")
    parser.add_argument("--concurrency", type=_counts, default=[1, 4, 16], help="comma-separated; default 1,4,16")
    parser.add_argument("--rounds", type=int, default=4, help="measurements of each backend in each cell; default 4")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of the shortest measurement; default 0.3")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads, the same everywhere; default 1")
    parser.add_argument("--json", type=Path, help="also write every reading to this file")
    return parser.parse_args(namespace=_Options())


def _chosen(value: str, every: Sequence[str]) -> list[str]:
    names = value.split(",")
    if unknown := [name for name in names if name not in every]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(every)}")
    return names


def _counts(value: str) -> list[int]:
    return [int(part) for part in value.split(",")]


def _measures(model: str, backend: str) -> bool:
    # The floor that a constant shows is the same for all; only the promise about the MLP asks for it.
    return backend != "constant" or model == "mlp"


def _seconds(model: Model, concurrency: int, seconds: float) -> float:
    return seconds * model.patience * max(1, concurrency / 8)


def _estimate(cells: Sequence[Cell], options: _Options) -> float:
    """Seconds that the grid takes, second looks aside."""
    return options.rounds * STARTUP_OF_SERVER_SECONDS + options.rounds * sum(
        _seconds(MODELS[cell.model], cell.concurrency, options.seconds) + STARTUP_SECONDS
        for cell in cells
        for backend in options.backends
        if _measures(cell.model, backend)
    )


def _machine(server: RunningServer, tool: Path, threads: int) -> dict[str, str]:
    """What the figures were taken with and on."""
    with urllib.request.urlopen(f"http://{server.options.url('http')}/v2", timeout=10) as response:
        triton = json.load(response)["version"]
    answer = subprocess.run([str(tool), "--version"], capture_output=True, text=True, check=False)
    analyzer = re.search(r"[Vv]ersion\s+(\S+)", answer.stdout + answer.stderr)
    packages = ("triton-unified-backend", "onnxruntime", "numpy")
    return {
        "cpu": f"{hosts.cpu_name() or platform.machine()}, {os.cpu_count()} cores",
        "load average": f"{os.getloadavg()[0]:.2f} at the start",
        "triton": triton,
        "perf_analyzer": analyzer[1] if analyzer else "unknown",
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "intra-op threads": str(threads),
    }


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    sys.exit(main())
