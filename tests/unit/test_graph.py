"""Simplified graphs: what is gone, that nothing else has changed, and what becomes of a model where that fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_files import CLS
from loading_worker import INPUT, answer, write_model
from onnx import parser
from unified_backend import ahead
from unified_backend.cache import Cache
from unified_backend.engines import Threads
from unified_backend.engines.onnxruntime import OnnxRuntime
from unified_backend.errors import NotCachedError
from unified_backend.formats.onnx import Onnx
from unified_backend.gpus import Gpu
from unified_backend.graph.operators import census, changes, foreign
from unified_backend.graph.simplifying import simplify
from unified_backend.loading import Described, describe

L4 = Gpu(0, "NVIDIA L4", (8, 9))  # stands for one that is not here: TensorRT-RTX may be taken, and so it is simplified
HEADER = '<ir_version: 9, opset_import: ["":17, "com.microsoft":1]> g '
IDLE = f"{HEADER}(float[N,4] x) => (float[N,4] y) {{ a = Identity(x) b = Relu(a) y = Identity(b) }}"
# A stand-in for onnxsim whose `simplify` is the body given.
STAND_IN = (
    "import os, signal, time, onnx\nfrom onnx import helper\ndef simplify(path):\n    model = onnx.load(path)\n    {}\n"
)


def described(folder: Path, cache: Cache, gpu: Gpu | None = L4, **parameters: str) -> Described:
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    return describe("net/1", folder, config, cache, gpu=gpu)


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield cache


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "models" / "net" / "1"
    folder.mkdir(parents=True)
    onnx.save(parser.parse_model(IDLE), folder / "model.onnx")
    return folder


def notes(found: Described) -> str:
    return "; ".join(found.report.notes)


def run(found: Described, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the engine made of the described model answers."""
    runner = OnnxRuntime().load(found.canonical, None, found.settings, Threads(1))
    return runner.run(feeds, [spec.name for spec in found.signature.outputs])


def test_what_became_of_nodes_is_told_by_kind():
    text = (
        "(float[N,4] x) => (float[N,4] y) <float[4] w = {1, 2, 3, 4}, float[4] v = {1, 1, 1, 1}> "
        "{ a = Add(w, v) b = Mul(x, a) c = Add(b, v) d = Identity(c) e = Cast<to=1>(d) y = Relu(e) }"
    )
    after = (
        "(float[N,4] x) => (float[N,4] y) <float[4] a = {2, 3, 4, 5}> { b = com.microsoft.Scaled(x, a) y = Relu(b) }"
    )
    found = changes(parser.parse_model(HEADER + text), parser.parse_model(HEADER + after))
    assert (found.folded, found.fused) == ({"Add": 1}, {"Add": 1, "Mul": 1})
    assert found.removed == {"Cast": 1, "Identity": 1}
    assert found.added == {"com.microsoft.Scaled": 1}
    assert foreign(census(parser.parse_model(HEADER + after))) == {"com.microsoft.Scaled"}


@pytest.mark.parametrize(
    ("nodes", "kept"),
    [
        ("{ s = Shape(x) a = Reshape(x, s) y = Relu(a) }", {"Relu": 1}),
        ("<bool c = {1}> { y = If(c) <then_branch = t () => (float[N,4] a) { a = Relu(x) }, "
         "else_branch = e () => (float[N,4] b) { b = Neg(x) }> }", {"Relu": 1}),
        ("<float[4] w = {1,2,3,4}> { g = com.microsoft.Gelu(w) a = Identity(g) y = Add(x, a) }",
         {"Add": 1, "com.microsoft.Gelu": 1}),
        ("{ r = RandomNormal<shape = [1,4], seed = 1.0>() a = Identity(r) y = Add(x, a) }",
         {"Add": 1, "RandomNormal": 1}),
    ],
    ids=["shapes", "branches", "foreign operators", "random"],
)  # fmt: skip
def test_only_what_has_no_effect_goes(tmp_path, nodes, kept):
    """Random values are drawn at every run, and operators outside ONNX are left alone."""
    onnx.save(parser.parse_model(f"{HEADER}(float[N,4] x) => (float[N,4] y) {nodes}"), tmp_path / "source")
    (tmp_path / "out").mkdir()
    facts = simplify(tmp_path / "source", tmp_path / "out")
    assert (facts["why"], facts["after"]) == (None, sum(kept.values()))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert census(model) == kept
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_a_load_simplifies_once_where_tensorrt_may_be_taken(folder, cache):
    first = described(folder, cache)
    assert "simplified: 3 nodes before, 1 after" in notes(first)
    assert first.report.lookups["simplified"] == "made"
    assert census(onnx.load(first.canonical.path)) == {"Relu": 1}
    assert run(first, {"x": np.array([[-1, 0, 2, 3]], np.float32)})[0].tolist() == [[0, 0, 2, 3]]
    again = described(folder, cache)
    assert again.report.lookups["simplified"] == "hit"
    assert again.canonical == first.canonical
    assert again.report.seconds["simplify"] < 0.1


@pytest.mark.parametrize(
    ("gpu", "parameters"),
    [(None, {}), (L4, {"graph_optimization": "none"}), (L4, {"engine": "onnxruntime"})],
    ids=["no GPU", "level none", "another engine"],
)
def test_a_load_that_gains_nothing_leaves_the_model_as_it_is(folder, cache, gpu, parameters):
    found = described(folder, cache, gpu, **parameters)
    assert "simplified" not in found.report.lookups
    assert found.canonical.path == folder / "model.onnx"


def test_a_model_that_must_be_cached_is_not_simplified_now(folder, cache):
    described(folder, cache, None)
    with pytest.raises(NotCachedError, match="simplified"):
        described(folder, cache, require_cached="true")


@pytest.mark.parametrize(
    ("body", "parameters", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", {}, "its process crashed with SIGSEGV"),
        ("time.sleep(60)", {"conversion_seconds": "2"}, "it was not done after 2 s"),
        ("raise ValueError('no shape for b')", {}, "onnxsim failed: no shape for b"),
        ("bytearray(2**32)", {"conversion_memory": "2GB"}, "it takes more than"),
        ("model.graph.node[1].op_type = 'Neg'; del model.graph.node[2]; model.graph.node[1].output[0] = 'y'; "
         "return [model]", {}, "output y at batch 1 would change by"),
        ("del model.graph.node[1:]; model.graph.node[0].op_type = 'FusedRelu'; "
         "model.graph.node[0].domain = 'com.microsoft'; model.graph.node[0].output[0] = 'y'; return [model]", {},
         "onnxsim wrote operators that are none of ONNX's: com.microsoft.FusedRelu"),
        ("del model.graph.node[2:]; return [model]", {}, "onnxsim failed"),
        ("return [model]", {}, ""),
    ],
    ids=["crash", "hang", "failure", "memory", "wrong", "foreign", "no output", "nothing gained"],
)  # fmt: skip
def test_a_simplifier_that_fails_costs_nothing_but_the_gain(
    folder, cache, tmp_path, monkeypatch, body, parameters, reason
):
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in" / "onnxsim.py").write_text(STAND_IN.format(body))
    monkeypatch.syspath_prepend(tmp_path / "stand-in")
    for origin in ("made", "hit"):  # it is not tried again
        found = described(folder, cache, **parameters)
        assert found.canonical.path == folder / "model.onnx"
        assert found.report.lookups["simplified"] == origin
        assert (f"not simplified: {reason}" if reason else "") in notes(found)
        assert ("simplified" in notes(found)) is bool(reason)
    assert run(found, {"x": np.array([[-1, 0, 2, 3]], np.float32)})[0].tolist() == [[0, 0, 2, 3]]


def test_external_data_stays_outside_the_model(cache, tmp_path):
    folder = write_model(tmp_path / "models" / "net" / "1", external="weights.bin")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.node[0].input[0] = "copied"
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["X"], ["copied"]))
    onnx.save(model, folder / "model.onnx")
    found = described(folder, cache)
    assert "simplified: 4 nodes before, 3 after" in notes(found)
    assert Onnx().companions(found.canonical.path) == ["model.onnx.data"]
    np.testing.assert_allclose(run(found, {"X": INPUT})[0], answer(), rtol=1e-5, atol=1e-4)


def test_fragments_are_simplified_with_the_model(cache, tmp_path):
    folder = tmp_path / "models" / "net" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(CLS.read_bytes())
    found = described(folder, cache, postprocess="topk(1)")
    before, after = (census(onnx.load(cache_path)) for cache_path in (composed(cache), found.canonical.path))
    assert before["TopK"] == after["TopK"] == 1
    assert after.total() < before.total()
    assert not foreign(after)


def composed(cache: Cache) -> Path:
    (entry,) = [entry for entry in cache.store.entries() if entry.manifest.key.kind == "composed"]
    return entry.path / "model.onnx"


def test_an_engine_built_ahead_is_the_one_that_a_host_with_the_gpu_looks_for(cache, folder):
    gpu = ahead.target("sm89")
    ahead.build_ahead(described(folder, cache, gpu), cache)
    (engine,) = [entry.manifest.key for entry in cache.store.entries() if entry.manifest.key.kind == "engine"]
    found = described(folder, cache, require_cached="true")
    assert found.canonical.digest == engine.fields["canonical"]
    assert "simplified: 3 nodes before, 1 after" in notes(found)
