"""What `export --native` wrote, in a real Triton: its core takes the configs, and the answers are those served here.

The embedded one has no onnxruntime backend, which the first test shows; what is in its place is `native_stand_in`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import Triton, command, start_server
from pipelines import write_pipeline
from unified_backend.server.find import find_server

HEADER = '<ir_version: 9, opset_import: ["":17]> '
NET = (
    HEADER
    + "g (float[N,4] x, int64[N,1] shift) => (float[N,4] y) { s = Cast <to = 1> (shift) h = Add(x, s) y = Relu(h) }"
)
ALONE = HEADER + "g (float[1,4] x) => (float[1,4] y) { y = Neg(x) }"
CONFIGS = {
    "net": """
backend: "unified"
output { name: "y" label_filename: "names.txt" }
parameters { key: "execution_mode" value { string_value: "parallel" } }
parameters { key: "graph_optimization" value { string_value: "basic" } }
model_warmup {
  name: "one" batch_size: 2
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] random_data: true } }
  inputs { key: "shift" value { data_type: TYPE_INT64 dims: [ 1 ] input_data_file: "shifts" } }
}
""",
    "best": 'backend: "unified"\nparameters { key: "postprocess" value { string_value: "softmax | topk(2)" } }',
    "half": 'backend: "unified"\nparameters { key: "precision" value { string_value: "fp16" } }',
    "alone": 'backend: "unified"\nmax_batch_size: 1',
}
GRAPHS = {"net": NET, "best": NET, "alone": ALONE}
DENSE = HEADER + "g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {W}> { y = MatMul(x, w) }"
GRAPHS["half"] = DENSE.replace("W}", ", ".join(f"{(5 * n % 11 - 5) / 4}" for n in range(16)) + "}")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> tuple[Path, Path]:
    """One for this backend, with a pipeline as an ensemble in it, and what is exported of it."""
    home = tmp_path_factory.mktemp("native")
    models = home / "models"
    for name, text in GRAPHS.items():
        (models / name / "1").mkdir(parents=True)
        onnx.save(onnx.parser.parse_model(text), models / name / "1" / "net")
        (models / name / "config.pbtxt").write_text(CONFIGS[name])
    (models / "net" / "names.txt").write_text("a\nb\nc\nd\n")
    (models / "net" / "warmup").mkdir()
    (models / "net" / "warmup" / "shifts").write_bytes(np.ones(2, np.int64).tobytes())
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TRITON_UNIFIED_CACHE": str(home / "cache")}
    for arguments in (
        ("ensemble", "build", write_pipeline(home), "--into", models),
        ("export", models, "--native", home / "native"),
    ):
        done = command(*arguments, env=env)
        assert done.returncode == 0, done.stderr
    return models, home / "native"


@pytest.fixture(scope="module")
def served(repositories) -> Iterator[Triton]:
    with start_server(repositories[0]) as triton:
        yield triton


@pytest.fixture(scope="module")
def native(repositories, tmp_path_factory) -> Iterator[Triton]:
    """A Triton with a backend called onnxruntime."""
    backends = tmp_path_factory.mktemp("with") / "backends"
    server = find_server()
    backends.mkdir()
    (backends / "python").symlink_to(server.backends / "python")
    (backends / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).parent.parent / "native_stand_in.py", backends / "onnxruntime" / "model.py")
    with start_server(repositories[1], server=dataclasses.replace(server, backends=backends)) as triton:
        yield triton


def test_the_embedded_triton_has_no_onnxruntime_backend(repositories, tmp_path):
    """Its core reads the exported configs, and then misses nothing but that."""
    shutil.copytree(repositories[1], tmp_path / "models")
    with start_server(tmp_path / "models", model_control_mode="explicit") as triton:
        for name in GRAPHS:
            assert "unable to find backend library for backend 'onnxruntime'" in triton.refusal_of(name)


X = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
SHIFT = np.array([[1], [-1]], np.int64)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("net", {"x": X, "shift": SHIFT}),
        ("best", {"x": X, "shift": SHIFT}),
        ("half", {"x": X}),
        ("alone", {"x": X[:1]}),
        ("sums", {"n": np.array([[3]], np.int32)}),
        ("sums", {"n": np.array([[0]], np.int32)}),
    ],
)
def test_the_same_requests_have_the_same_answers(served, native, model, inputs):
    here, there = served.infer(model, inputs), native.infer(model, inputs)
    assert here.keys() == there.keys()
    for name, array in here.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(there[name], array, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(there[name], array)


def test_labels_and_batches_are_as_they_were(served, native):
    for triton in (served, native):
        config = triton.config("net")
        assert (config["max_batch_size"], config["output"][0]["label_filename"]) == (32, "names.txt")
        assert config["dynamic_batching"] is not None
    assert native.config("net")["backend"] == "onnxruntime"
