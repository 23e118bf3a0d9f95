"""Frozen TensorFlow graphs, made here message by message: recognised, described, and served by OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from unified_backend.cache import Cache
from unified_backend.errors import SourceError
from unified_backend.formats import find_source
from unified_backend.formats.tensorflow_messages import message_class
from unified_backend.loading import Loaded, describe, load

FLOAT, BOOL = 1, 10  # DataType of types.proto
WEIGHTS = np.random.default_rng(5).standard_normal((4, 3)).astype(np.float32)


def graph(training: bool = False) -> Any:
    """GraphDef: y = relu(x W), or 0 while training where there is such a switch."""
    made = message_class("GraphDef")()
    made.versions.producer = 1087

    def node(name: str, op: str, *inputs: str, dtype: str = "T", kind: int = FLOAT) -> Any:
        added = made.node.add(name=name, op=op, input=inputs)
        added.attr[dtype].type = kind
        return added

    placeholder = node("x", "Placeholder", dtype="dtype")
    for size in (-1, 4):
        placeholder.attr["shape"].shape.dim.add(size=size)
    tensor = node("W", "Const", dtype="dtype").attr["value"].tensor
    tensor.dtype = FLOAT
    for size in WEIGHTS.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = WEIGHTS.tobytes()
    product = node("product", "MatMul", "x", "W")
    product.attr["transpose_a"].b = product.attr["transpose_b"].b = False
    if training:
        node("is_training", "Placeholder", dtype="dtype", kind=BOOL).attr["shape"].shape.SetInParent()
        node("nothing", "ZerosLike", "product")
        node("chosen", "Select", "is_training", "nothing", "product")
        node("y", "Relu", "chosen")
    else:
        node("y", "Relu", "product")
    return made


def written(folder: Path, content: bytes, name: str = "graph.pb") -> Path:
    """A version folder with one file."""
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return folder


def loaded(folder: Path, root: Path, **parameters: str) -> Loaded:
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    with Cache(root) as cache:
        return load(describe("net/1", folder, config, cache), cache)


X = np.random.default_rng(6).standard_normal((5, 4)).astype(np.float32)
Y = np.maximum(X @ WEIGHTS, 0)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_a_frozen_graph_is_served_by_its_placeholders_and_sinks(tmp_path, text):
    content = text_format.MessageToString(graph()).encode() if text else graph().SerializeToString()
    served = loaded(
        written(tmp_path / "models/net/1", content, "anything.pbtxt" if text else "anything"), tmp_path / "cache"
    )
    assert served.described.source.format == "graphdef"
    assert served.described.config["max_batch_size"] == 32
    np.testing.assert_allclose(served.runner.run({"x": X}, ["y"])[0], Y, rtol=1e-5, atol=1e-6)


def test_a_switch_for_training_is_fed_false(tmp_path):
    folder = written(tmp_path / "models/net/1", graph(training=True).SerializeToString())
    served = loaded(folder, tmp_path / "cache")
    assert [spec.name for spec in served.runner.signature.inputs] == ["x"]
    assert any("is_training:0 is fed false" in note for note in served.described.report.notes)
    np.testing.assert_allclose(served.runner.run({"x": X}, ["y"])[0], Y, rtol=1e-5, atol=1e-6)


def test_the_parameter_outputs_serves_a_tensor_inside_the_graph(tmp_path):
    folder = written(tmp_path / "models/net/1", graph().SerializeToString())
    served = loaded(folder, tmp_path / "cache", outputs="product:0")
    np.testing.assert_allclose(served.runner.run({"x": X}, ["product"])[0], X @ WEIGHTS, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_graph_is_refused_with_a_sentence(tmp_path, kept):
    content = graph().SerializeToString()
    folder = written(tmp_path / "models/net/1", content[: int(len(content) * kept)])
    with Cache(tmp_path / "cache") as cache, pytest.raises(SourceError):
        find_source("net/1", folder, cache.store.memo)


def test_damage_of_any_kind_is_refused_and_crashes_nothing(tmp_path):
    chance = np.random.default_rng(8)
    content = graph().SerializeToString()
    refused = 0
    with Cache(tmp_path / "cache") as cache:
        for number in range(60):
            damaged = bytearray(content)
            for position in chance.integers(0, len(content), 4):
                damaged[position] ^= 1 << chance.integers(0, 8)
            folder = written(tmp_path / f"models/net{number}/1", bytes(damaged))
            try:
                source = find_source("net/1", folder, cache.store.memo)
                assert source.format in ("graphdef", "savedmodel", "checkpoint", "onnx")
            except SourceError:
                refused += 1
    assert refused
