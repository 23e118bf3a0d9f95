"""What serving costs on a GPU: this backend beside a naive model.py, ONNX Runtime in process, and the GPU's limit.

    python benchmarks/gpu.py --torch /path/to/python/with/torch --json gpu.json

Every figure of a row is taken in one run, minutes apart at most. `host` is ONNX Runtime in process, fed with batches of
64 from NumPy; `device` the same engine without copies (I/O binding, channels last, CUDA graph); clients send single
images through system shared memory, and dynamic batching joins them. `fp16` serves a file that PyTorch exported so;
`cast` the FP32 file with the parameter `precision`, and compares it with that.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import platformdirs
import tritonclient.grpc as grpcclient
from unified_backend.errors import MeasurementError
from unified_backend.gpus import driver
from unified_backend.graph.cast import cast
from unified_backend.graph.files import read_whole, write_whole
from unified_backend.measuring.perf_analyzer import Load, Reading, find_perf_analyzer, measure
from unified_backend.measuring.serving import serving

HERE = Path(__file__).resolve().parent
BATCH = 64
SECONDS = 2.4
OUTPUT_BYTES = 4000
# as the table has it -> (precision of the file that is served, TF32 allowed, parameter `precision`)
PRECISIONS = {
    "fp32": ("fp32", False, None),
    "tf32": ("fp32", True, None),
    "fp16": ("fp16", False, None),
    "cast": ("fp32", False, "fp16"),
}
INPUTS = ("float", "uint8")
# How the unified backend is configured: (instances, contexts of each).
UNIFIED = {"one instance": (1, 3), "three instances": (3, 1)}
RANDOM_SECONDS, RANDOM_CLIENTS = 10.0, 2

_CONFIG = """\
backend: "{backend}"
max_batch_size: 64
input [ {{ name: "input" data_type: {type} dims: [ 3, 224, 224 ] }} ]
output [ {{ name: "output" data_type: TYPE_FP32 dims: [ 1000 ] }} ]
dynamic_batching {{ }}
instance_group [ {{ count: {count} kind: KIND_GPU gpus: [ 0 ] }} ]
"""


@dataclass
class Row:
    """One network in one precision with one type of input; images per second, and milliseconds by concurrency.

    Attributes:
        served: configuration -> concurrency -> reading.
        longest: of requests whose batch sizes vary at random, once warm, in milliseconds.
        error: on photographs, to the network in FP32: `max_rel` and `mean_rel` to its largest value, `top1`.
    """

    network: str
    precision: str
    input: str
    host: float
    device: float
    compiled: float | None = None
    served: dict[str, dict[int, Reading]] = field(default_factory=dict)
    longest: float | None = None
    error: dict[str, float] = field(default_factory=dict)

    def best(self, concurrency: int) -> float:
        """Images per second of the better configuration of the unified backend."""
        return max(self.served[name][concurrency].throughput for name in UNIFIED)


def main() -> int:
    options = _options()
    if not driver().gpus:
        print(f"no GPU: {driver().why_none}", file=sys.stderr)
        return 2
    tool = find_perf_analyzer()
    gpu = driver().gpus[0]
    folder = platformdirs.user_cache_path("triton-unified-benchmarks") / "gpu"
    _child(options.torch, "torch_side.py", "export", str(folder))
    rows = []
    for network in options.networks:
        for precision in options.precisions:
            rows += _measured(network, precision, folder, tool, options)
            if options.json:  # after each, for the next may fail
                report = {"device": gpu.name, "rows": [asdict(row) for row in rows]}
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{gpu.name}, driver for CUDA {'.'.join(map(str, driver().cuda or ()))}")
    print(_table(rows, options.concurrency))
    return 0


def _measured(network: str, precision: str, folder: Path, tool: Path, options: argparse.Namespace) -> list[Row]:
    source, tf32, lowered = PRECISIONS[precision]
    rows = []
    for pixels in INPUTS:
        file = folder / f"{network}_{source}_{pixels}.onnx"
        against = []
        if lowered:  # what the server makes of it, in process
            against, file = [str(file)], folder / f"{network}_cast_{pixels}.onnx"
            write_whole(cast(read_whole(Path(against[0])), "fp16").model, file)
        took = json.loads(_child(sys.executable, "cuda_side.py", str(file), str(BATCH), str(int(tf32)), *against))
        row = Row(network, precision, pixels, *(round(1000 * BATCH / took[name]) for name in ("host", "device")))
        row.error = {name: took[name] for name in ("max_rel", "mean_rel", "top1") if name in took}
        rows.append(row)
    if precision == "fp16":
        took = json.loads(_child(options.torch, "torch_side.py", "compile", network, str(BATCH)))
        rows[0].compiled = round(1000 * BATCH / took[str(BATCH)])
    with tempfile.TemporaryDirectory(prefix="gpu-") as temporary:
        repository = Path(temporary) / "models"
        for row in rows:
            _write(repository, row, folder / f"{network}_{source}_{row.input}.onnx", tf32, lowered)
        with serving(repository, Path(temporary)) as server:
            url = server.options.url("grpc")
            for row in rows:
                for name in (*UNIFIED, "naive"):
                    model = f"{row.input}_{name.replace(' ', '_')}"
                    for concurrency in options.concurrency if name != "naive" else (64,):
                        try:
                            load = Load(model, url, "shm", concurrency, output_bytes=OUTPUT_BYTES)
                            reading = measure(tool, load, SECONDS)
                        except MeasurementError as error:
                            print(error, file=sys.stderr)
                            continue
                        row.served.setdefault(name, {})[concurrency] = reading
                        print(f"{network} {precision} {row.input} {name} c{concurrency} {reading}", flush=True)
            if precision == "fp16":
                rows[-1].longest = _longest(url, "uint8_one_instance")
    return rows


def _write(repository: Path, row: Row, file: Path, tf32: bool, lowered: str | None) -> None:
    kind = "TYPE_UINT8" if row.input == "uint8" else "TYPE_FP32"
    for name, (count, contexts) in UNIFIED.items():
        version = repository / f"{row.input}_{name.replace(' ', '_')}" / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").symlink_to(file)
        config = _CONFIG.format(backend="unified", type=kind, count=count)
        config += _parameters(contexts=str(contexts), tf32=str(int(tf32)))
        config += _parameters(precision=lowered) if lowered else ""
        (version.parent / "config.pbtxt").write_text(config)
    version = repository / f"{row.input}_naive" / "1"
    version.mkdir(parents=True)
    shutil.copyfile(HERE / "baselines" / "naive.py", version / "model.py")
    config = _CONFIG.format(backend="python", type=kind, count=1)
    # A naive model uses the provider as it comes, with TF32.
    config += _parameters(file=str(file), provider="CUDAExecutionProvider", intra_op_thread_count="1")
    (version.parent / "config.pbtxt").write_text(config)


def _parameters(**values: str) -> str:
    return "".join(
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n' for name, value in values.items()
    )


def _longest(url: str, model: str) -> float:
    """Milliseconds of the slowest request, of clients whose batch sizes vary at random."""
    slowest = [0.0] * RANDOM_CLIENTS
    end = time.monotonic() + RANDOM_SECONDS

    def ask(number: int) -> None:
        generator = np.random.default_rng(number)
        client = grpcclient.InferenceServerClient(url)
        while time.monotonic() < end:
            images = np.zeros((int(generator.integers(1, BATCH + 1)), 3, 224, 224), np.uint8)
            value = grpcclient.InferInput("input", list(images.shape), "UINT8")
            value.set_data_from_numpy(images)
            began = time.perf_counter()
            client.infer(model, [value])
            slowest[number] = max(slowest[number], time.perf_counter() - began)

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(RANDOM_CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return round(1000 * max(slowest), 1)


def _child(python: str, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [python, str(HERE / "measuring" / script), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def _table(rows: Sequence[Row], concurrency: Sequence[int]) -> str:
    lines = [
        "| network | precision | input | host/s | device/s | torch.compile/s | naive c64 | unified "
        + " | ".join(f"c{number}" for number in concurrency)
        + " | best c64 of host | best of device | p50 c1 ms | longest ms | max error, same class |",
        "|---" * (13 + len(concurrency)) + "|",
    ]
    for row in rows:
        naive = row.served.get("naive", {}).get(64)
        of_device = max(row.best(number) for number in concurrency) / row.device
        for name in UNIFIED:
            readings = row.served.get(name, {})
            cells = [
                *(row.network, row.precision, row.input, row.host, row.device, row.compiled or ""),
                *(f"{naive.throughput:.0f}" if naive else "", name),
                *(f"{reading.throughput:.0f} ({reading.p99:.0f} ms)" for reading in readings.values()),
                *(f"{row.best(64) / row.host:.2f}", f"{of_device:.2f}", f"{readings[1].p50:.2f}", row.longest or ""),
                f"{row.error['max_rel']:.1e}, {row.error['top1']:.0%}" if row.error else "",
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=sys.executable, help="an interpreter with torch, torchvision and CUDA")
    parser.add_argument("--networks", type=_words, default=["resnet50", "efficientnet_lite0"], help="comma-separated")
    parser.add_argument("--precisions", type=_words, default=list(PRECISIONS), help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 16, 64, 256], help="comma-separated; 1 and 64 too")
    parser.add_argument("--json", type=Path, help="also write every reading to this file")
    return parser.parse_args()


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
