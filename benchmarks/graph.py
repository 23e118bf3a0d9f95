"""What simplifying a model gains each engine: the table of docs/tasks/speed.md.

    python benchmarks/graph.py

Each cell is of the model as it is, and of the model simplified. Milliseconds are medians of runs that take turns, at
batch 1, so that they hold on a busy machine too; TensorRT-RTX builds for a GPU that need not be there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import real_models
from engine_files import CLS, DET, SQUEEZENET
from unified_backend import ahead, hosts
from unified_backend.cache import Cache
from unified_backend.engines import Built, Canonical, Threads
from unified_backend.engines.tensorrt_build import LAYERS, PLAN
from unified_backend.formats.onnx import read_model
from unified_backend.forms.profiled import with_profiles
from unified_backend.forms.reference import ENGINES, Reference
from unified_backend.forms.simplified import simplified
from unified_backend.graph.operators import census
from unified_backend.loading import Described, describe
from unified_backend.lookups import Lookup
from unified_backend.verification import samples_of

MODELS = {
    "PP-OCRv4 detector": lambda: DET,
    "PP-OCRv4 recogniser": lambda: next(CLS.parent.glob("*_rec_infer.onnx")),
    "PP-OCR classifier": lambda: CLS,
    "basic-pitch": lambda: real_models.path("basic-pitch", "saved_models/icassp_2022/nmp.onnx"),
    "DenseNet-121 (onnx's light model)": lambda: SQUEEZENET.with_name("light_densenet121.onnx"),
    "Inception 2 (likewise)": lambda: SQUEEZENET.with_name("light_inception_v2.onnx"),
    "ResNet-50 (likewise)": lambda: SQUEEZENET.with_name("light_resnet50.onnx"),
}
ON_CPU = ("onnxruntime", "openvino")
SECONDS = 3.0  # of runs, for each engine
COLUMNS = ("model", "nodes", *(f"{name} ms" for name in ON_CPU), "TensorRT-RTX layers", "build s", "plan MB")


def main() -> None:
    """Print the table."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(*COLUMNS)
    for name, path in MODELS.items():
        with tempfile.TemporaryDirectory() as home, Cache(Path(home)) as cache:
            table.add_row(name, *_cells(path(), cache))
    console.print(table)


def _cells(path: Path, cache: Cache) -> list[str]:
    config = {"parameters": {"source": {"string_value": path.name}}}
    described = describe(path.name, path.parent, config, cache)
    lookup = Lookup(path.name, described.snapshot, described.settings, cache, described.report)
    reference = Reference(path.name, described.settings)
    forms = (described.canonical, simplified(described.canonical, lookup, reference).canonical)
    nodes = [str(census(read_model(form.path)).total()) for form in forms]
    runs = [[f"{each:.2f}" for each in _milliseconds(name, described, forms, reference)] for name in ON_CPU]
    built = zip(*(_built(described, form, lookup, reference) for form in forms), strict=True)
    return [" / ".join(pair) for pair in (nodes, *runs, *built)]


def _milliseconds(
    name: str, described: Described, forms: tuple[Canonical, Canonical], reference: Reference
) -> list[float]:
    """Median of a run at batch 1, in milliseconds, of each form."""
    engine, feeds = ENGINES[name], samples_of(reference.runner(forms[0]), forms[0].fixed)[0].feeds
    outputs = [spec.name for spec in described.signature.outputs]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        runners = []
        for form, folder in zip(forms, (Path(one), Path(other)), strict=True):
            built = Built(folder, engine.build(form, described.settings, folder))
            runners.append(engine.load(form, built, described.settings, Threads(hosts.cores())))
            runners[-1].run(feeds, outputs)
        took: list[list[float]] = [[], []]
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for runner, row in zip(runners, took, strict=True):
                began = time.perf_counter()
                runner.run(feeds, outputs)
                row.append(time.perf_counter() - began)
    return [1000 * median(row) for row in took]


def _built(described: Described, form: Canonical, lookup: Lookup, reference: Reference) -> tuple[str, str, str]:
    """Layers, seconds and size of TensorRT-RTX's engine for an L4."""
    settings = dataclasses.replace(described.settings, gpu=ahead.target("sm89"))
    settings = with_profiles(form, settings, described.config, lookup, reference)
    with tempfile.TemporaryDirectory() as folder:
        facts = ENGINES["tensorrt_rtx"].build(form, settings, Path(folder))
        layers = json.loads((Path(folder) / LAYERS).read_text())
        size = (Path(folder) / PLAN).stat().st_size
    found = layers["Layers"] if isinstance(layers, dict) else layers
    return str(len(found)), f"{facts['seconds']:.1f}", f"{size / 1e6:.1f}"


if __name__ == "__main__":
    main()
