"""One measurement at a time: a served model under the load of Triton's perf_analyzer."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from unified_backend.errors import MeasurementError, Refused

__all__ = [
    "EVERY_PART",
    "LASTS",
    "PARTS",
    "PROTOCOLS",
    "STARTUP_SECONDS",
    "Load",
    "Reading",
    "enough_seconds",
    "find_perf_analyzer",
    "measure",
]

PROTOCOLS = ("grpc", "http", "shm")
# Where a request's time goes, in its order: perf_analyzer's columns. The client's own are of the load generator.
PARTS = MappingProxyType(
    {
        "client send": "Client Send",
        "network": "Network+Server Send/Recv",
        "queue": "Server Queue",
        "input": "Server Compute Input",
        "infer": "Server Compute Infer",
        "output": "Server Compute Output",
        "client receive": "Client Recv",
    }
)
# With what the server calls `infer` divided, where the model has stages: see `stages.divided`.
STAGES = ("preprocess", "infer", "postprocess")
EVERY_PART = tuple(one for part in PARTS for one in (STAGES if part == "infer" else (part,)))

STARTUP_SECONDS = 0.35  # perf_analyzer's own start and end, measured
LASTS = 1.2  # as long as it was told to measure: 1.30 s for 1.00, 8.27 for 6.72, 19.34 for 15.94

# perf_analyzer reports once this many windows agree; `-s` below makes any three agree.
WINDOWS = 3
# A window counts the requests that end in it, and lies half a latency before those it was made for: it misses so much.
# ResNet-50 at concurrency 4 had 11.7 inferences a second in windows of three latencies, 12.5 in windows of thirty.
LATENCIES = 32
LONGEST_WINDOW = 12.0  # seconds
# What perf_analyzer prints when no request, or none in one of the windows, ended in time; the last of an ensemble, one
# of whose models answered nothing in a window (a pipeline that took 6 s, in windows of 12).
TOO_SHORT = (
    "use a larger time window",
    "Failed to obtain stable measurement",
    "failed to find the requested model version",
)


@dataclass(frozen=True)
class Load:
    """What is asked of a served model.

    Attributes:
        name: the model's in the server.
        url: host:port of the protocol's endpoint.
        protocol: grpc, http, or shm (system shared memory for inputs and outputs, over gRPC).
        concurrency: requests in flight.
        batch: samples a request; 1 for a model that takes no batches too.
        input_data: as perf_analyzer has it: `zero`, `random`, or a JSON file.
        output_bytes: what one output takes, for the shared memory regions.
        shapes: of inputs with open dimensions, without the batch: `image:3,224,224`.
    """

    name: str
    url: str
    protocol: str = "grpc"
    concurrency: int = 1
    batch: int = 1
    input_data: str = "zero"
    output_bytes: int = 0
    shapes: Sequence[str] = ()


@dataclass(frozen=True)
class Reading:
    """What a load gave.

    Attributes:
        throughput: inferences a second: requests times their batch.
        p50, p90, p95, p99: percentiles of a request's latency, in milliseconds.
        parts: the mean of each of `EVERY_PART`, in milliseconds; of an ensemble the sum over its steps.
    """

    throughput: float
    p50: float
    p99: float = float("nan")
    p90: float = float("nan")
    p95: float = float("nan")
    parts: Mapping[str, float] = field(default_factory=dict)


def find_perf_analyzer() -> Path:
    """perf_analyzer beside this interpreter, or on PATH.

    Raises:
        Refused: it is not installed.
    """
    beside = Path(sys.executable).with_name("perf_analyzer")
    found = str(beside) if beside.exists() else shutil.which("perf_analyzer")
    if found is None:
        raise Refused(
            "perf_analyzer is missing",
            "it is neither beside this Python nor on PATH",
            "`make setup` brings it into .venv; Triton's SDK image has it, and `pip install perf-analyzer`",
        )
    return Path(found)


def measure(tool: Path, load: Load, seconds: float, lengthen: bool = True) -> Reading:
    """Load the model for about `seconds`, or as long as it needs.

    Args:
        lengthen: measure again, for longer, where `seconds` turn out to be few for such latencies; else only where no
            request ended in them.

    Raises:
        MeasurementError: perf_analyzer failed, or on a stalled machine saw no request end even in longer windows.
    """
    command = [str(tool), "-m", load.name, "-u", load.url, "-i", "http" if load.protocol == "http" else "grpc"]
    command += ["-b", str(load.batch), "--concurrency-range", str(load.concurrency)]
    command += ["--input-data", load.input_data, "--percentile", "50"]
    command += [part for shape in load.shapes for part in ("--shape", shape)]
    if load.protocol == "shm":
        size = max(load.output_bytes * load.batch, 1024)
        command += ["--shared-memory", "system", "--output-shared-memory-size", str(size)]
    output = ""
    for longer in (1, 3, 9):
        reading, output = _analyzed(command, longer * seconds)
        if reading:
            enough = enough_seconds(reading.p50 / 1000) if lengthen else 0.0
            return reading if longer * seconds >= enough else _analyzed(command, enough)[0] or reading
        if not any(sign in output for sign in TOO_SHORT):
            break
    said = [line.strip() for line in output.splitlines() if line.strip()]
    why = f"perf_analyzer says: {said[-1]}" if said else "perf_analyzer said nothing"
    raise MeasurementError(
        f"{load.name} was not measured at concurrency {load.concurrency}", why, "See the server's log, and try again"
    )


def enough_seconds(latency: float) -> float:
    """How long a measurement has to last for requests that take `latency` seconds."""
    return WINDOWS * min(LATENCIES * latency, LONGEST_WINDOW)


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
    [row] = rows
    p50, p90, p95, p99 = (float(row[f"p{percent} latency"]) / 1000 for percent in (50, 90, 95, 99))
    parts = {part: float(row[column]) / 1000 for part, column in PARTS.items() if row.get(column)}
    return Reading(float(row["Inferences/Second"]), p50, p99, p90, p95, parts), done.stdout
