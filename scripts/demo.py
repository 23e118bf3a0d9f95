"""The main job, seen from outside: start a real Triton on model_repository/, ask its models real questions, stop."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import skimage.data
import tritonclient.grpc as grpcclient
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from unified_backend.server.find import find_server
from unified_backend.server.options import Options
from unified_backend.server.preflight import free_ports
from unified_backend.server.run import start

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
PHOTOGRAPHS = ("page", "rocket", "coffee")  # of scikit-image; the first shows a printed page

ROUNDS = 5  # of each question, for the latency


class Client:
    """Asks models and remembers how long each answer took."""

    def __init__(self, url: str) -> None:
        self._client = grpcclient.InferenceServerClient(url)
        self.seconds: dict[str, list[float]] = {}

    def ask(self, model: str, name: str, array: np.ndarray, version: str = "") -> np.ndarray:
        """The first output of `model` for one input."""
        tensor = grpcclient.InferInput(name, array.shape, grpcclient.np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            result = self._client.infer(model, [tensor], model_version=version)
            self.seconds.setdefault(model, []).append(time.perf_counter() - began)
        return result.as_numpy(result.get_response().outputs[0].name)

    def config(self, model: str) -> str:
        """Inputs and outputs as completed, in one line."""
        config = self._client.get_model_config(model).config
        sides = (", ".join(f"{one.name} {list(one.dims)}" for one in side) for side in (config.input, config.output))
        return f"{' -> '.join(sides)}, max batch {config.max_batch_size}"


def as_input(image: Image.Image) -> np.ndarray:
    """[1, 3, H, W] float32 in [-1, 1], as PP-OCR was trained."""
    return ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]


def find_lines(client: Client, image: Image.Image) -> Iterator[tuple[float, float, float, float]]:
    """Boxes of text lines (left, top, right, bottom in pixels), top to bottom, from the detector's probability map."""
    scale = min(1.5, 960 / max(image.size))
    width, height = (max(32, round(side * scale / 32) * 32) for side in image.size)  # the net halves five times
    pixels = client.ask("ocr_detection.unified", "x", as_input(image.resize((width, height))))[0, 0]
    regions, _ = ndimage.label(pixels > 0.3)
    across, down = image.width / width, image.height / height
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions), 1):
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        if tall < 5 or wide < 8 or pixels[rows, columns][regions[rows, columns] == number].mean() < 0.6:
            continue
        grow = 0.8 * tall * wide / (tall + wide)  # the net is trained on shrunken lines
        left, top = max(0, columns.start - grow), max(0, rows.start - grow)
        yield left * across, top * down, (columns.stop + grow) * across, (rows.stop + grow) * down


def read_line(client: Client, image: Image.Image, box: tuple[float, ...], characters: list[str]) -> tuple[str, float]:
    """Text and mean confidence of one line, by greedy CTC decoding."""
    line = image.crop([round(side) for side in box])
    line = line.resize((max(48, round(line.width * 48 / line.height / 8) * 8), 48))
    steps = client.ask("ocr_recognition", "x", as_input(line))[0]
    best = steps.argmax(1)
    kept = [i for i, symbol in enumerate(best) if symbol and (i == 0 or best[i - 1] != symbol)]
    return "".join(characters[best[i]] for i in kept), float(np.mean([steps[i, best[i]] for i in kept] or [0]))


def read_photographs(client: Client, console: Console) -> None:
    """Print what stands on each photograph."""
    recogniser = onnx.load(REPOSITORY / "ocr_recognition" / "1" / "model.onnx")
    written = next(entry.value for entry in recogniser.metadata_props if entry.key == "character")
    characters = ["", *written.split("\n"), " "]
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        lines = [read_line(client, image, box, characters) for box in find_lines(client, image)]
        console.print(f"\n{name}, a photograph of {image.width} x {image.height}: {len(lines) or 'no'} lines of text")
        for text, confidence in lines:
            console.print(f"  {confidence:4.0%}  {text}", markup=False)


def name_file_types(client: Client, console: Console) -> None:
    """Print what the file-type model makes of files of this very checkout."""
    labels = json.loads((REPOSITORY / "file_type.unified" / "labels.json").read_text())["target_labels_space"]
    files = [Path(__file__), REPOSITORY.parent / "Makefile", REPOSITORY.parent / "README.md", Path(sys.executable)]
    scores = client.ask("file_type.unified", "bytes", np.stack([ends(path.read_bytes()) for path in files]))
    console.print("\nkinds of files, from their bytes")
    for path, row in zip(files, scores, strict=True):
        console.print(f"  {row.max():4.0%}  {path.name}: {labels[row.argmax()]}", markup=False)


def ends(content: bytes) -> np.ndarray:
    """[2048] int32: the first and the last 1024 bytes without outer white space, 256 where there are none."""
    first, last = content[:4096].strip()[:1024], content[-4096:].strip()[-1024:]
    padding = np.full(1024, 256, np.int32)
    head = np.concatenate([np.frombuffer(first, np.uint8), padding[len(first) :]])
    return np.concatenate([head, padding[len(last) :], np.frombuffer(last, np.uint8)]).astype(np.int32)


def ask_tiny_models(client: Client, console: Console) -> None:
    """Print what the committed models answer: one without a config, one with two versions."""
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    answers = client.ask("xor.unified", "bits", bits)[:, 0]
    rows = zip(bits, answers, strict=True)
    console.print("\nxor of two bits: " + ", ".join(f"{a:.0f} {b:.0f} -> {y:.0f}" for (a, b), y in rows))
    boiling = np.array([[100]], np.float32)
    fahrenheit, kelvin = (client.ask("temperature", "celsius", boiling, version)[0, 0] for version in ("1", "2"))
    console.print(
        f"100 degrees Celsius: version 1 says {fahrenheit:.0f} Fahrenheit, version 2 says {kelvin:.2f} Kelvin"
    )


def print_latencies(client: Client, console: Console) -> None:
    """Print what each model's config became and how long its answers took."""
    table = Table(
        title="\nserved, each from one model file and at most a partial config", title_justify="left", box=None
    )
    for heading in ("model", "completed config", "requests", "median ms"):
        table.add_column(heading, justify="right" if heading[0] in "r" or heading.endswith("ms") else "left")
    for model, seconds in client.seconds.items():
        table.add_row(model, client.config(model), str(len(seconds)), f"{statistics.median(seconds) * 1e3:.1f}")
    console.print(table)


def main() -> None:
    """Run the demo; exits with 1 if a model does not load."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "triton.log"
        http, grpc, metrics = free_ports(3)
        options = Options(host="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics, log=log)
        began = time.monotonic()
        console.print(f"starting Triton on {REPOSITORY.name}/")
        with start(find_server(), [REPOSITORY], options) as server:
            if not server.ready(timeout=300) or any(model.state != "READY" for model in server.models()):
                console.print(log.read_text(), markup=False)
                raise SystemExit("demo: a model did not load; the server's log is above")
            console.print(f"ready after {time.monotonic() - began:.1f} s: {len(server.models())} model versions")
            client = Client(options.url("grpc"))
            read_photographs(client, console)
            name_file_types(client, console)
            ask_tiny_models(client, console)
            print_latencies(client, console)
    console.print("\nstopped. `make serve` keeps it running.")


if __name__ == "__main__":
    main()
