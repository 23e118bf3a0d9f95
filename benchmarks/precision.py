"""What a lower precision gives on this CPU, and what it costs in answers.

    python benchmarks/precision.py --rounds 5

EfficientNet-Lite0 with its real weights, calibrated on packaged photographs, and a small network trained here on
scikit-learn's handwritten digits, whose labels are known. Each model is loaded as a server loads it, with the parameter
`precision`; times are those of the engine alone, measured in turns, and the ratio is the median of each round's own.
`python scripts/make_classifier.py` puts EfficientNet-Lite0 in place.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from rich.console import Console
from rich.table import Table
from unified_backend import hosts
from unified_backend.cache import Cache
from unified_backend.loading import Loaded, describe, load
from unified_backend.tensors import Array

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from digits import digits, network  # noqa: E402
from real_models import path as real_path  # noqa: E402

CLASSIFIER = ROOT / "ensembles/classify/models/efficientnet.onnx"
PRECISIONS = ("fp32", "fp16", "int8")
PHOTOGRAPHS = (
    *("astronaut", "camera", "cat", "chelsea", "clock", "coffee", "coins", "hubble_deep_field", "immunohistochemistry"),
    *("logo", "moon", "page", "retina", "rocket", "text"),
)
RUNS = 40  # of one reading


@dataclass(frozen=True)
class Subject:
    """A network in every precision.

    Attributes:
        feeds: one batch, which is timed.
        models: precision -> what is served.
        scores: precision -> its answers to all that it is tried on, [N, classes].
        labels: of those, where they are known.
    """

    name: str
    feeds: Mapping[str, Array]
    models: Mapping[str, Loaded]
    scores: Mapping[str, Array]
    labels: Array | None


def main() -> None:
    """Measure, and print the table."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    with tempfile.TemporaryDirectory() as folder, Cache(Path(folder) / "cache") as cache:
        repository = Path(folder) / "repository"
        subjects = [_classifier(repository, cache, options), _digits(repository, cache, options)]
        rows = []
        for subject in subjects:
            console.print(f"{subject.name}: {options.rounds} rounds")
            rows += _measured(subject, options.rounds)
            for model in subject.models.values():
                model.runner.close()
    console.print(_table(rows, options.threads))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _classifier(repository: Path, cache: Cache, options: argparse.Namespace) -> Subject:
    """EfficientNet-Lite0 on photographs, which it is calibrated on too."""
    if not CLASSIFIER.exists():
        raise SystemExit("precision: EfficientNet-Lite0 is not there. Run `python scripts/make_classifier.py`.")
    files = _photographs()

    def calibrate(folder: Path) -> None:
        for name, content in files.items():
            (folder / f"{name}.jpg").write_bytes(content)

    models = _loaded(repository / "classifier", CLASSIFIER.read_bytes(), calibrate, cache, options, "efficientnet-lite")
    column = np.empty((1, 1), object)
    scores: dict[str, list[Array]] = {precision: [] for precision in models}
    for content in files.values():
        column[0, 0] = content
        for precision, model in models.items():
            scores[precision].append(model.runner.run({"image": column}, ["linear"])[0])
    images = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    joined = {precision: np.concatenate(rows) for precision, rows in scores.items()}
    return Subject("EfficientNet-Lite0", {"inputs": images}, models, joined, None)


def _digits(repository: Path, cache: Cache, options: argparse.Namespace) -> Subject:
    """Digits that it was neither trained nor calibrated on."""
    data = digits()

    def calibrate(folder: Path) -> None:
        for number in range(32):
            np.savez(folder / f"{number}.npz", image=data.images[number * 4 : number * 4 + 4])

    models = _loaded(repository / "digits", network(data), calibrate, cache, options, None)
    scores = {name: one.runner.run({"image": data.test_images}, ["scores"])[0] for name, one in models.items()}
    return Subject("digits", {"image": data.test_images[:64]}, models, scores, data.test_labels)


def _loaded(
    model: Path, content: bytes, calibrate: Any, cache: Cache, options: argparse.Namespace, preprocess: str | None
) -> dict[str, Loaded]:
    (model / "calibration").mkdir(parents=True)
    calibrate(model / "calibration")
    version = model / "1"
    version.mkdir()
    (version / "model.onnx").write_bytes(content)
    found = {}
    for precision in options.precisions:
        parameters = {"precision": precision, "intra_op_thread_count": str(options.threads), "engine": "onnxruntime"}
        parameters |= {"preprocess": preprocess} if preprocess else {}
        given = {name: {"string_value": text} for name, text in parameters.items()}
        found[precision] = load(describe(f"{model.name}/1", version, {"parameters": given}, cache), cache)
    return found


def _photographs() -> dict[str, bytes]:
    """scikit-image's and scikit-learn's, as JPEG."""
    pictures = {}
    for name in PHOTOGRAPHS:
        pixels = getattr(skimage.data, name)()
        content = io.BytesIO()
        Image.fromarray(pixels).convert("RGB").save(content, "JPEG", quality=92)
        pictures[name] = content.getvalue()
    for name in ("china", "flower"):
        pictures[name] = real_path("scikit-learn", f"datasets/images/{name}.jpg").read_bytes()
    return pictures


def _measured(subject: Subject, rounds: int) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {precision: [] for precision in subject.models}
    for _ in range(rounds):
        for precision, model in subject.models.items():
            times[precision].append(_milliseconds(model, subject.feeds))
    full = subject.scores["fp32"]
    rows = []
    for precision, taken in times.items():
        scores = subject.scores[precision].astype(np.float64)
        right = None if subject.labels is None else float((scores.argmax(1) == subject.labels).mean())
        errors = np.abs(scores - full)
        rows.append(
            {
                "network": subject.name,
                "precision": precision,
                "ms": median(taken),
                "ratio": median(base / mine for base, mine in zip(times["fp32"], taken, strict=True)),
                "megabytes": _megabytes(subject.models[precision]),
                "same": float((scores.argmax(1) == full.argmax(1)).mean()),
                "right": right,
                "max_rel": float(errors.max() / np.abs(full).max()),
                "tried": len(scores),
            }
        )
    return rows


def _milliseconds(model: Loaded, feeds: Mapping[str, Array]) -> float:
    names = [spec.name for spec in model.engine_runner.signature.outputs]
    taken = []
    for number in range(RUNS + 5):
        began = time.perf_counter()
        model.engine_runner.run(feeds, names)
        if number >= 5:
            taken.append(1000 * (time.perf_counter() - began))
    return median(taken)


def _megabytes(model: Loaded) -> float:
    """Of the lowered model, which engines are built from."""
    path = model.described.canonical.path
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6


def _table(rows: Sequence[Mapping[str, Any]], threads: int) -> Table:
    vnni = "with VNNI" if "vnni" in hosts.cpu_features() else "without VNNI"
    title = f"{hosts.cpu_name()} {vnni}, {threads} of {hosts.cores()} cores, Python {platform.python_version()}"
    table = Table(title=title, title_justify="left", box=None)
    for heading in ("network", "precision", "ms", "times FP32", "MB", "same class", "right", "of", "max error"):
        table.add_column(heading, justify="right" if heading not in ("network", "precision") else "left")
    for row in rows:
        table.add_row(
            *(row["network"], row["precision"], f"{row['ms']:.2f}", f"{row['ratio']:.2f}", f"{row['megabytes']:.2f}"),
            *(f"{row['same']:.1%}", "" if row["right"] is None else f"{row['right']:.1%}", str(row["tried"])),
            f"{row['max_rel']:.1e}",
        )
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=list(PRECISIONS), help="fp32 first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    if options.precisions[0] != "fp32":
        parser.error("the first of --precisions is fp32, which the others are compared with")
    return options


if __name__ == "__main__":
    main()
