"""What a pipeline costs: fused, as a Triton ensemble, and with the decoding done by the client.

    python benchmarks/pipeline.py --pipelines classify,ocr --concurrency 1,4 --rounds 3

All of them are in one server and measured in turns, so that ratios hold on a busy machine too: each is the median
of the rounds' own. `classify` needs `python scripts/make_classifier.py` first.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import skimage.data
import tritonclient.grpc as grpcclient
from PIL import Image
from rich.console import Console
from rich.table import Table
from unified_backend import hosts
from unified_backend.ensembles.definition import Definition, read_definition
from unified_backend.ensembles.members import wired
from unified_backend.ensembles.writing import write_ensemble, write_fused
from unified_backend.loading import open_cache
from unified_backend.measuring.perf_analyzer import Load, Reading, find_perf_analyzer, measure
from unified_backend.measuring.serving import serving

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = {"classify": "coffee", "ocr": "page"}
CLIENT = "decoded by the client"  # of classify, whose network takes the tensor


@dataclass(frozen=True)
class Row:
    """One way of asking, at one concurrency, in every round."""

    pipeline: str
    way: str
    concurrency: int
    readings: Sequence[Reading]

    def middle(self, name: str) -> float:
        """The median of a value over the rounds."""
        return median(getattr(reading, name) for reading in self.readings)


def main() -> None:
    """Measure, and print the table."""
    options = _options()
    tool = find_perf_analyzer()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        with open_cache() as cache:
            for name in options.pipelines:
                path = ROOT / "ensembles" / name / f"{name}.yaml"
                found = wired(read_definition(path), repository, cache)
                write_ensemble(found, repository, replace=False)
                write_fused(wired(_renamed(path), repository, cache), repository, replace=False)
        (Path(folder) / "server").mkdir()
        with serving(repository, Path(folder) / "server") as server:
            url = server.options.url("grpc")
            rows = [
                row
                for name in options.pipelines
                for concurrency in options.concurrency
                for row in _measured(tool, url, name, concurrency, options, Path(folder), console)
            ]
    console.print(_table(rows))
    if options.json:
        options.json.write_text(json.dumps([_values(row) for row in rows], indent=1) + "\n")


def _renamed(path: Path) -> Definition:
    """The definition under a name of its own, beside the ensemble's."""
    text = path.read_text().replace(f"name: {path.stem}\n", f"name: {path.stem}_fused\n", 1)
    other = path.with_name(f".{path.stem}_fused.yaml")
    other.write_text(text)
    try:
        return read_definition(other)
    finally:
        other.unlink()


def _measured(
    tool: Path,
    url: str,
    pipeline: str,
    concurrency: int,
    options: argparse.Namespace,
    folder: Path,
    console: Console,
) -> list[Row]:
    content = _photograph(PHOTOGRAPHS[pipeline])
    ways: dict[str, list[Reading]] = {"ensemble": [], "fused": []}
    if pipeline == "classify":
        ways[CLIENT] = []
    for number in range(options.rounds):
        console.print(f"{pipeline} concurrency {concurrency}: round {number + 1} of {options.rounds}")
        for way, readings in ways.items():
            if way == CLIENT:
                readings.append(_by_client(url, content, concurrency, options.seconds))
                continue
            name = pipeline if way == "ensemble" else f"{pipeline}_fused"
            data = folder / f"{name}.json"
            shape = [1, 1] if way == "ensemble" else [1]
            data.write_text(json.dumps({"data": [{"image": {"content": {"b64": _bytes(content)}, "shape": shape}}]}))
            load = Load(name, url, concurrency=concurrency, input_data=str(data))
            readings.append(measure(tool, load, options.seconds))
    return [Row(pipeline, way, concurrency, readings) for way, readings in ways.items()]


def _photograph(name: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(getattr(skimage.data, name)()).convert("RGB").save(content, "JPEG", quality=90)
    return content.getvalue()


def _bytes(content: bytes) -> str:
    """A string as perf_analyzer takes it: its length before it."""
    return base64.b64encode(len(content).to_bytes(4, "little") + content).decode()


def _by_client(url: str, content: bytes, concurrency: int, seconds: float) -> Reading:
    """Clients that decode with Pillow and send the network's tensor, each in a thread of this process."""
    latencies: list[list[float]] = [[] for _ in range(concurrency)]
    began = time.perf_counter()

    def ask(mine: list[float]) -> None:
        with grpcclient.InferenceServerClient(url) as client:
            while (asked := time.perf_counter()) < began + seconds:
                tensor = grpcclient.InferInput("inputs", [1, 3, 224, 224], "FP32")
                tensor.set_data_from_numpy(_prepared(content))
                client.infer("efficientnet", [tensor])
                mine.append(1000 * (time.perf_counter() - asked))

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = sorted(latency for mine in latencies for latency in mine)
    took = time.perf_counter() - began
    return Reading(len(every) / took, median(every), every[min(len(every) - 1, int(0.99 * len(every)))])


def _prepared(content: bytes) -> np.ndarray:
    """[1, 3, 224, 224], as ensembles/classify/prepare.py has it."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1)[None])


def _table(rows: Sequence[Row]) -> Table:
    title = f"{hosts.cpu_name()}, {hosts.cores()} cores, Python {platform.python_version()}; medians of the rounds"
    table = Table(title=title, title_justify="left", box=None)
    for heading in ("pipeline", "concurrency", "way", "images/s", "p50 ms", "p99 ms", "to the ensemble"):
        table.add_column(heading, justify="right" if heading not in ("pipeline", "way") else "left")
    for row in rows:
        table.add_row(
            row.pipeline,
            str(row.concurrency),
            row.way,
            f"{row.middle('throughput'):.1f}",
            f"{row.middle('p50'):.1f}",
            f"{row.middle('p99'):.1f}",
            f"{_ratio(row, rows):.2f}",
        )
    return table


def _ratio(row: Row, rows: Sequence[Row]) -> float:
    """Throughput as a multiple of the ensemble's in the same round; the median over the rounds."""
    base = next(
        one for one in rows if (one.pipeline, one.concurrency, one.way) == (row.pipeline, row.concurrency, "ensemble")
    )
    return median(mine.throughput / other.throughput for mine, other in zip(row.readings, base.readings, strict=True))


def _values(row: Row) -> dict[str, object]:
    values = {name: [getattr(one, name) for one in row.readings] for name in ("throughput", "p50", "p99")}
    return {"pipeline": row.pipeline, "way": row.way, "concurrency": row.concurrency, **values}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", type=lambda text: text.split(","), default=["classify", "ocr"])
    parser.add_argument("--concurrency", type=lambda text: [int(one) for one in text.split(",")], default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one measurement")
    parser.add_argument("--json", type=Path, help="write every reading there too")
    options = parser.parse_args()
    if unknown := [name for name in options.pipelines if name not in PHOTOGRAPHS]:
        parser.error(f"no such pipeline: {', '.join(unknown)}; there are {', '.join(PHOTOGRAPHS)}")
    return options


if __name__ == "__main__":
    main()
