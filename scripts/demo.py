"""The main job, seen from outside: start a real Triton on model_repository/, ask its models real questions, stop."""

from __future__ import annotations

import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data
import tritonclient.grpc as grpcclient
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from unified_backend.ensembles.definition import read_definition
from unified_backend.ensembles.members import wired
from unified_backend.ensembles.writing import write_fused
from unified_backend.loading import open_cache
from unified_backend.server.find import find_server
from unified_backend.server.options import Options
from unified_backend.server.preflight import free_ports
from unified_backend.server.run import start

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY, PICTURES = ROOT / "model_repository", ROOT / "build" / "demo"
PHOTOGRAPHS = ("page", "rocket")  # of scikit-image; the first shows a printed page
SUBJECTS = ("chelsea", "coffee")

ROUNDS = 5  # of each question, for the latency


class Client:
    """Asks models and remembers how long each answer took."""

    def __init__(self, url: str) -> None:
        self._client = grpcclient.InferenceServerClient(url)
        self.seconds: dict[str, list[float]] = {}

    def ask(self, model: str, name: str, array: np.ndarray, version: str = "") -> np.ndarray:
        """The first output of `model` for one input."""
        return next(iter(self.ask_all(model, name, array, version).values()))

    def ask_all(self, model: str, name: str, array: np.ndarray, version: str = "") -> dict[str, np.ndarray]:
        """All outputs of `model` for one input, by name."""
        tensor = grpcclient.InferInput(name, array.shape, grpcclient.np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            result = self._client.infer(model, [tensor], model_version=version)
            self.seconds.setdefault(model, []).append(time.perf_counter() - began)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def config(self, model: str) -> str:
        """Inputs and outputs as completed, in one line."""
        config = self._client.get_model_config(model).config
        sides = (", ".join(f"{one.name} {list(one.dims)}" for one in side) for side in (config.input, config.output))
        return f"{' -> '.join(sides)}, max batch {config.max_batch_size}"


def read_photographs(client: Client, pictures: Path, console: Console) -> None:
    """Print what stands on each photograph, and save it with boxes and text drawn over it."""
    for name in PHOTOGRAPHS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        found = client.ask_all("ocr", "image", encoded(image))
        lines = list(zip(found["text"][:, 0], found["score"][:, 0], found["boxes"], strict=True))
        console.print(f"\n{name}, a photograph of {image.width} x {image.height}: {len(lines) or 'no'} lines of text")
        # Twice as large, and what was read beside it, at its height.
        image = image.resize((2 * image.width, 2 * image.height))
        canvas = Image.new("RGB", (2 * image.width, image.height), (255, 255, 255))
        canvas.paste(image)
        drawing = ImageDraw.Draw(canvas)
        for text, score, corners in lines:
            console.print(f"  {score:4.0%}  {text.decode()}", markup=False)
            drawing.polygon([tuple(2 * corner) for corner in corners], outline=(214, 40, 40), width=2)
            left, top = 2 * corners[0]
            drawing.text((image.width + left, top), text.decode(), fill=(20, 20, 20), font_size=22)
        saved(canvas, pictures / f"ocr_{name}.png", console)


def classify_photographs(client: Client, pipeline: str, pictures: Path, console: Console) -> None:
    """Print what is on each photograph, and save it with the answers drawn over it."""
    console.print(f"\nwhat is on them ({pipeline})")
    if pipeline != "classify":
        console.print("  a network with made-up weights: `python scripts/make_classifier.py` brings a real one")
    for name in SUBJECTS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        found = client.ask_all(pipeline, "image", encoded(image))
        answers = [
            f"{score:4.0%}  {label.decode()}"
            for label, score in zip(found["labels"][0], found["scores"][0], strict=True)
        ]
        console.print(f"  {name}: {'  '.join(answers[:3])}", markup=False)
        drawing = ImageDraw.Draw(image)
        drawing.rectangle((0, 0, 260, 20 * len(answers) + 10), fill=(0, 0, 0))
        drawing.multiline_text((8, 4), "\n".join(answers), fill=(255, 255, 255), font_size=15)
        saved(image, pictures / f"classify_{name}.png", console)


def encoded(image: Image.Image) -> np.ndarray:
    """[1, 1]: the file that a client would send."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return np.array([[content.getvalue()]], object)


def saved(image: Image.Image, path: Path, console: Console) -> None:
    """Save a picture, and say where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    console.print(f"  drawn: {path.relative_to(ROOT)}", markup=False)


def built_pipelines(repository: Path) -> str:
    """Write the two pipelines into a repository as fused models; the name of the one that classifies."""
    real = (ROOT / "ensembles/classify/models/efficientnet.onnx").exists()
    with open_cache() as cache:
        for path in ("ocr/ocr.yaml", "classify/classify.yaml" if real else "classify/light.yaml"):
            write_fused(wired(read_definition(ROOT / "ensembles" / path), None, cache), repository, replace=False)
    return "classify" if real else "classify_light"


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
        console.print("writing two pipelines of ensembles/ as fused models")
        pipelines = Path(folder) / "pipelines"
        classifier = built_pipelines(pipelines)
        console.print(f"starting Triton on {REPOSITORY.name}/ and on these")
        with start(find_server(), [REPOSITORY, pipelines], options) as server:
            if not server.ready(timeout=300) or any(model.state != "READY" for model in server.models()):
                console.print(log.read_text(), markup=False)
                raise SystemExit("demo: a model did not load; the server's log is above")
            console.print(f"ready after {time.monotonic() - began:.1f} s: {len(server.models())} model versions")
            client = Client(options.url("grpc"))
            read_photographs(client, PICTURES, console)
            classify_photographs(client, classifier, PICTURES, console)
            name_file_types(client, console)
            ask_tiny_models(client, console)
            print_latencies(client, console)
    console.print("\nstopped. `make serve` keeps it running.")


if __name__ == "__main__":
    main()
