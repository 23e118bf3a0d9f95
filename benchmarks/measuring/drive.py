"""One measurement at a time: a served model through perf_analyzer, or the same session called in this process."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

__all__ = ["PROTOCOLS", "MeasurementError", "Reading", "find_perf_analyzer", "in_process", "open_session", "served"]

PROTOCOLS = ("grpc", "http", "shm")

# perf_analyzer reports once this many windows agree; `-s` below makes any three agree.
WINDOWS = 3
# A window counts the requests that end in it, and lies half a latency before those it was made for: it misses so much.
# ResNet-50 at concurrency 4 had 11.7 inferences a second in windows of three latencies, 12.5 in windows of thirty.
LATENCIES = 32
LONGEST_WINDOW = 12.0  # seconds
# What perf_analyzer prints when no request, or none in one of the windows, ended in time.
TOO_SHORT = ("use a larger time window", "Failed to obtain stable measurement")


class MeasurementError(RuntimeError):
    """perf_analyzer measured nothing; the message carries the end of what it printed."""


@dataclass(frozen=True)
class Reading:
    """Inferences per second, and the median and 99th percentile of a request's latency in milliseconds."""

    throughput: float
    p50: float
    p99: float = float("nan")


def find_perf_analyzer() -> Path | None:
    """perf_analyzer beside this interpreter, or on PATH."""
    beside = Path(sys.executable).with_name("perf_analyzer")
    found = str(beside) if beside.exists() else shutil.which("perf_analyzer")
    return Path(found) if found else None


def served(
    tool: Path,
    name: str,
    url: str,
    protocol: str,
    concurrency: int,
    seconds: float,
    output_bytes: int,
    input_data: str = "zero",
) -> Reading:
    """Load `name` with `concurrency` requests in flight, each a batch of one, for about `seconds`, or as it needs.

    Args:
        url: host:port of the protocol's endpoint.
        protocol: grpc, http, or shm (system shared memory for inputs and outputs, over gRPC).
        output_bytes: what the output takes, for the shared memory regions.
        input_data: as perf_analyzer has it: `zero`, or a JSON file.

    Raises:
        MeasurementError: perf_analyzer failed, or on a stalled machine saw no request end even in longer windows.
    """
    command = [str(tool), "-m", name, "-u", url, "-i", "http" if protocol == "http" else "grpc"]
    command += ["--concurrency-range", str(concurrency), "--input-data", input_data, "--percentile", "50"]
    if protocol == "shm":
        command += ["--shared-memory", "system", "--output-shared-memory-size", str(max(output_bytes, 1024))]
    for longer in (1, 3, 9):
        reading, output = _analyzed(command, longer * seconds)
        if reading:
            enough = WINDOWS * min(LATENCIES * reading.p50 / 1000, LONGEST_WINDOW)
            return reading if longer * seconds >= enough else _analyzed(command, enough)[0] or reading
        if not any(sign in output for sign in TOO_SHORT):
            break
    raise MeasurementError(f"{' '.join(command)}\n{output[-2000:]}")


def _analyzed(command: Sequence[str], seconds: float) -> tuple[Reading | None, str]:
    """What `command` measured, if it did, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        window = ["-p", str(round(1000 * seconds / WINDOWS)), "-r", str(WINDOWS), "-s", "999", "-f", str(report)]
        done = subprocess.run(
            [*command, *window], capture_output=True, text=True, timeout=60 + 20 * seconds, check=False
        )
        rows = list(csv.DictReader(report.open())) if report.exists() else []
    if done.returncode or len(rows) != 1:
        return None, done.stdout + done.stderr
    row = {name: float(rows[0][name]) for name in ("Inferences/Second", "p50 latency", "p99 latency")}
    return Reading(row["Inferences/Second"], row["p50 latency"] / 1000, row["p99 latency"] / 1000), done.stdout


def open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """The session that each baseline opens, here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def in_process(
    session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray[Any, Any]], concurrency: int, seconds: float
) -> Reading:
    """Call `session` from `concurrency` threads, each as soon as its last call returned, for `seconds`.

    One call runs at a time, as in the one instance of every served model: equal thread settings would otherwise give
    this side as many cores as there are callers.
    """
    turn, latencies = threading.Lock(), [list[float]() for _ in range(concurrency)]
    session.run(None, feed)
    start = time.perf_counter()
    end = start + seconds

    def call(mine: list[float]) -> None:
        asked = time.perf_counter()
        while asked < end:
            with turn:
                session.run(None, feed)
            answered = time.perf_counter()
            mine.append(answered - asked)
            asked = answered

    callers = [threading.Thread(target=call, args=(mine,)) for mine in latencies]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    elapsed = time.perf_counter() - start
    every = [latency for mine in latencies for latency in mine]
    return Reading(len(every) / elapsed, 1000 * median(every))
