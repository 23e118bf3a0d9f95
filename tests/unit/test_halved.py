"""FP16 and BF16: what is cast and what stays, what is compared with FP32, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch_real_models
from commands import command, printed
from engine_files import CLS, DET, mnn
from unified_backend.cache import Cache
from unified_backend.engines.tensorrt import TensorRtRtx
from unified_backend.errors import EngineError, UnifiedError, VerificationError
from unified_backend.gpus import Gpu
from unified_backend.graph.cast import cast
from unified_backend.loading import Described, Loaded, describe, load
from unified_backend.model_keys import engine_key

L4 = Gpu(0, "NVIDIA L4", (8, 9))  # stands for one that is not here
LINES = CLS.with_name("ch_PP-OCRv4_rec_infer.onnx")
HEADER = '<ir_version: 9, opset_import: ["":17]> '
INPUT, OUTPUT = "(float[N,4] x)", "(float[N,4] y)"
WEIGHTS = "<float[4,4] w = {1.0,0.5,0.25,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0,2.0,3.0,4.0}>"
MLP = f"{HEADER} g {INPUT} => {OUTPUT} {WEIGHTS} {{ a = MatMul(x, w) y = Relu(a) }}"
# 4096 leaves FP16 steps of 4 and BF16 ones of 32: nothing is left of what was added.
LOST = f"{HEADER} g {INPUT} => {OUTPUT} {{ c = Constant<value = float[1] {{4096.0}}>() a = Add(x, c) y = Sub(a, c) }}"


def described(home: Path, source: str | Path, gpu: Gpu | None = None, **parameters: str) -> Described:
    """As a load understands it; `samples` and a second call are the test's own."""
    folder = home / "models" / "net" / "1"
    if not folder.exists():
        folder.mkdir(parents=True)
        model = onnx.parser.parse_model(source) if isinstance(source, str) else onnx.load(str(source))
        onnx.save(model, folder / "model.onnx")
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    with Cache(home / "cache") as cache:
        return describe("net/1", folder, config, cache, gpu=gpu)


def loaded(home: Path, source: str | Path, **parameters: str) -> Loaded:
    understood = described(home, source, **parameters)
    with Cache(home / "cache") as cache:
        return load(understood, cache)


def sample(home: Path, number: int, **arrays: np.ndarray) -> None:
    folder = home / "models" / "net" / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{number}.npz", **arrays)


def nodes(described: Described) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in onnx.load(str(described.canonical.path)).graph.node:
        found.setdefault(node.op_type, []).append(node)
    return found


def types(model: onnx.ModelProto) -> set[int]:
    return {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}


def test_it_is_served_in_fp16_between_inputs_and_outputs_of_fp32(tmp_path):
    first = loaded(tmp_path, MLP, precision="fp16")
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)}
    (answer,) = first.runner.run(feeds, ["y"])
    (expected,) = loaded(tmp_path, MLP).runner.run(feeds, ["y"])
    assert answer.dtype == np.float32
    assert not np.array_equal(answer, expected)
    np.testing.assert_allclose(answer, expected, atol=2e-3 * np.abs(expected).max())
    (note,) = first.described.report.notes
    assert note.startswith("precision fp16: 2 nodes, 0 kept in FP32; off by ")
    lowered = onnx.load(str(first.described.canonical.path))
    assert {tensor.data_type for tensor in lowered.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert types(lowered) == {onnx.TensorProto.FLOAT}
    assert len(nodes(first.described)["Cast"]) == 2  # one at each end, and none between
    again = loaded(tmp_path, MLP, precision="fp16")
    assert again.described.report.lookups["precision"] == again.described.report.lookups["engine"] == "hit"
    assert again.described.report.notes == [note]


def test_it_is_compared_as_the_type_rounds_and_not_as_the_cpu_computes_it(tmp_path):
    """ONNX Runtime computes FP16 in FP32 between casts, and answers this one without an error."""
    lowered = cast(onnx.parser.parse_model(LOST), "fp16").model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(lowered.SerializeToString(), options)
    feeds = {"x": np.array([[0.25, 0.5, 0.75, 1.0]], np.float32)}
    np.testing.assert_allclose(session.run(None, feeds)[0], feeds["x"], rtol=1e-3)
    with pytest.raises(VerificationError, match=r"net/1: the model in FP16 differs .* output y at batch . is off by"):
        described(tmp_path, LOST, precision="fp16")
    with pytest.raises(VerificationError, match="parameter `exclude`, accept more with `tolerance`"):
        described(tmp_path, LOST, precision="bf16")


def test_auto_goes_on_without_and_remembers_why(tmp_path, caplog):
    for state in ("made", "hit"):
        found = described(tmp_path, LOST, gpu=L4, precision="auto")
        assert found.report.lookups["precision"] == state
        assert found.canonical.precision is None
        assert re.fullmatch(r"precision fp16 is not taken: output y at batch . is off by .*", found.report.notes[0])
        assert 'not lowered model=net/1 precision=fp16 reason="' in caplog.text
        caplog.clear()
    assert described(tmp_path / "good", MLP, gpu=L4, precision="auto").canonical.precision == "fp16"
    found = described(tmp_path / "good", MLP, precision="auto")  # FP16 is slower on a CPU
    assert found.canonical.precision is None


def test_what_is_kept_in_fp32_makes_a_model_good(tmp_path):
    found = described(tmp_path, LOST, precision="fp16", tolerance="2")
    assert "0 kept in FP32" in found.report.notes[0]
    source = LOST.replace("y = Sub(a, c)", "b = Sub(a, c) y = Relu(b)")
    found = described(tmp_path / "kept", source, precision="fp16", exclude="Add*,b")
    assert "1 nodes, 2 kept in FP32 (Add_1: excluded by Add*; Sub_2: excluded by b)" in found.report.notes[0]


def test_batching_is_what_it_is_in_fp32_and_an_output_near_zero_does_not_undo_it(tmp_path):
    """PP-OCR's detector answers noise with 1e-8, which FP16 rounds to nothing or to twice that."""
    lowered = described(tmp_path, DET, precision="fp16")
    assert lowered.config["max_batch_size"] == described(tmp_path, DET).config["max_batch_size"] > 0
    assert "batch_norm_0.w_2 holds 9.79e+07, beyond FP16's 65504" in lowered.report.notes[0]


REFUSED = {
    "nothing matches": (MLP, {"precision": "fp16", "exclude": "Relu,hed_*"}, '"exclude" has hed_*: it matches no node'),
    "all is excluded": (MLP, {"precision": "fp16", "exclude": "*"}, "no node can be lowered to fp16: excluded by *"),
    "nothing is lowered": (MLP, {"exclude": "Relu"}, 'parameter "exclude" is set: it is for a precision below FP32'),
    "not at all": (MLP, {"precision": "tf32", "calibration": "data"}, 'parameter "calibration" is set: it is for'),
    "fp32 and tf32": (MLP, {"precision": "fp32", "tf32": "1"}, 'parameters "precision" and "tf32" contradict each'),
    "tf32 and not": (MLP, {"precision": "tf32", "tf32": "0"}, 'parameters "precision" and "tf32" contradict each'),
    "unknown": (MLP, {"precision": "half"}, '"precision" is "half": it must be one of fp32, tf32, fp16, bf16, int8'),
    "no numbers": (
        f"{HEADER} g (int64[N,4] x) => (int64[N,4] y) {{ y = Abs(x) }}",
        {"precision": "fp16"},
        "no node can be lowered to fp16: it computes with no FP32 numbers. Leave the parameter `precision` out",
    ),
    "weights overflow": (
        f"{HEADER} g {INPUT} => {OUTPUT} {{ c = Constant<value = float[1] {{100000.0}}>() y = Mul(x, c) }}",
        {"precision": "fp16"},
        "no node can be lowered to fp16: c holds 1e+05, beyond FP16's 65504",
    ),
    "no sample": (
        f"{HEADER} g (float[N,4] x, int64[K] i) => (float[M,4] y) "
        "{ a = Relu(x) t = Constant<value = int64[1] {1000}>() j = Add(i, t) y = Gather<axis = 0>(a, j) }",
        {"precision": "fp16"},
        "cannot be compared with FP32: no seeded input runs on the model. Give inputs that it takes as samples/",
    ),
}


@pytest.mark.parametrize(("source", "parameters", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(tmp_path, source, parameters, words):
    with pytest.raises(UnifiedError) as refused:
        described(tmp_path, source, **parameters)
    assert str(refused.value).startswith("net/1: ")
    assert words in str(refused.value)


def test_a_model_that_came_in_fp16_is_kept_as_it_is(tmp_path):
    source = f"{HEADER} g (float16[N,4] x) => (float16[N,4] y) {{ y = Relu(x) }}"
    found = described(tmp_path, source, precision="fp16")
    assert found.report.notes == ["precision fp16: the model came in it, and is kept so"]
    assert found.canonical.path == tmp_path / "models" / "net" / "1" / "model.onnx"


def test_values_that_fp16_cannot_hold_are_found_in_every_sample(tmp_path):
    """Of two samples the second overflows; the last node is far from it."""
    (tmp_path / "models" / "net").mkdir(parents=True)
    source = f"{HEADER} g {INPUT} => {OUTPUT} {WEIGHTS} {{ a = MatMul(x, w) b = Sigmoid(a) y = Relu(b) }}"
    sample(tmp_path, 0, x=np.full((1, 4), 0.01, np.float32))
    small = described(tmp_path, source, precision="fp16")
    assert "3 nodes, 0 kept in FP32" in small.report.notes[0]
    sample(tmp_path, 1, x=np.full((1, 4), 3e4, np.float32))
    large = described(tmp_path, source, precision="fp16")
    assert "1 nodes, 2 kept in FP32 (MatMul_0: x reached 3e+04, and FP16 ends at 65504; " in large.report.notes[0]


def test_bf16_runs_where_there_are_kernels_and_is_refused_elsewhere(tmp_path):
    served = loaded(tmp_path, MLP, precision="bf16")
    assert served.engine == "openvino"
    assert "onnxruntime: it has no BF16 kernels for CPUs (Could not find an implementation for MatMul" in served.reason
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)}
    (answer,), (expected,) = served.runner.run(feeds, ["y"]), loaded(tmp_path, MLP).runner.run(feeds, ["y"])
    np.testing.assert_allclose(answer, expected, atol=2e-2 * np.abs(expected).max())
    with pytest.raises(EngineError, match="onnxruntime: it has no BF16 kernels for CPUs"):
        loaded(tmp_path, MLP, precision="bf16", engine="onnxruntime")


def test_check_and_the_entry_tell_the_precision(tmp_path):
    folder = tmp_path / "models" / "net.unified" / "1"
    folder.mkdir(parents=True)
    onnx.save(onnx.parser.parse_model(MLP.replace("Relu(a)", "Exp(a)")), folder / "model.onnx")
    assert printed(tmp_path, "check", folder.parent)["precision"] == "as it came"
    (folder.parent / "config.pbtxt").write_text('parameters { key: "precision" value { string_value: "fp16" } }')
    shown = printed(tmp_path, "check", folder.parent)
    assert shown["precision"] == "fp16"
    assert "1 nodes, 1 kept in FP32 (Exp_1: Exp stays in FP32); off by " in "".join(shown["notes"])
    (entry,) = tmp_path.glob("cache/entries/precision/*/*/manifest.json")
    facts = json.loads(entry.read_text())["facts"]
    assert facts["precision"] == "fp16"
    assert facts["kept"] == {"Exp_1": "Exp stays in FP32"}
    assert {row["output"] for row in facts["verified"]} == {"y"}
    assert not list(entry.parent.glob("judge*"))


def test_a_model_that_is_no_onnx_is_not_served_in_another_precision(tmp_path):
    folder = tmp_path / "models" / "net.unified" / "1"
    folder.mkdir(parents=True)
    (folder / "model.mnn").write_bytes(mnn(CLS).read_bytes())
    (folder.parent / "config.pbtxt").write_text('parameters { key: "precision" value { string_value: "fp16" } }')
    done = command(tmp_path, "check", folder.parent)
    assert done.returncode == 1
    assert 'parameter "precision" needs the model as ONNX' in done.stderr
    assert "Give the ONNX model that the file was made of, or remove the parameter" in done.stderr


# Share of FP32's size: EfficientNet-Lite0's 19 MB are nearly all weights, a fifth of the line recogniser's 15 is code.
@pytest.mark.parametrize(("name", "share"), [("efficientnet", 0.55), ("lines", 0.62)])
def test_tensorrt_builds_an_engine_of_it_whose_layers_are_fp16(tmp_path, name, share):
    """For a GPU that is not here, which finds it: strongly typed, the engine computes in what the graph says."""
    source = LINES if name == "lines" else torch_real_models.path("efficientnet.onnx")
    sizes, shown = {}, {}
    for precision in ("fp32", "auto"):
        home = tmp_path / precision
        folder = home / "models" / "net.unified" / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(source.read_bytes())
        config = f'parameters {{ key: "precision" value {{ string_value: "{precision}" }} }}'
        (folder.parent / "config.pbtxt").write_text(config)
        built = printed(home, "build", home / "models", "--for", "sm89")
        assert [row["status"] for row in built["models"]] == ["built"]
        (plan,) = home.glob("cache/entries/**/model.plan")
        sizes[precision] = plan.stat().st_size
        shown[precision] = printed(home, "inspect", plan.parent)["facts"]["types"]
    assert sizes["auto"] <= share * sizes["fp32"], sizes
    assert "FP16" not in shown["fp32"], shown
    assert shown["auto"]["FP16"] >= 10 * shown["auto"].get("FP32", 0), shown
    with Cache(home / "cache") as cache:
        parameters = {"parameters": {"precision": {"string_value": "auto"}}}
        found = describe("net.unified/1", folder, parameters, cache, gpu=Gpu(2, "NVIDIA L40S", (8, 9)))
        assert found.canonical.precision == "fp16"
        assert plan.parent == cache.store.place(engine_key(found.canonical.digest, TensorRtRtx(), found.settings))


def test_what_lies_behind_an_operator_that_onnx_does_not_know_stays_in_fp32(tmp_path):
    """Its type is not known, so that no cast can be put before what reads it."""
    opsets = '<ir_version: 9, opset_import: ["":17, "com.microsoft":1]> '
    source = f"""{opsets} g {INPUT} => {OUTPUT} {WEIGHTS} {{
        a = Gemm(x, w) b = com.microsoft.Gelu(a) c = Gemm(b, w) y = Relu(c) }}"""
    lowered = loaded(tmp_path, source, precision="fp16")
    x = np.ones((2, 4), np.float32)
    assert np.isfinite(lowered.runner.run({"x": x}, ["y"])[0]).all()
    note = next(note for note in lowered.described.report.notes if note.startswith("precision fp16"))
    assert "the type of b is not known" in note


def test_graphs_inside_nodes_stay_in_fp32_and_are_told(tmp_path):
    source = f"""{HEADER} g (float[N,4] x, bool c) => {OUTPUT} {WEIGHTS} {{
        a = MatMul(x, w)
        b = If (c) <then_branch = t () => (float[N,4] p) {{ p = MatMul(a, w) }},
                    else_branch = e () => (float[N,4] q) {{ q = Relu(a) }}>
        y = Relu(b) }}"""
    sample(tmp_path, 0, x=np.ones((2, 4), np.float32), c=np.array(True))
    understood = described(tmp_path, source, precision="fp16")
    note = next(note for note in understood.report.notes if note.startswith("precision fp16"))
    assert "If holds a graph of its own" in note


def test_samples_that_are_no_numbers_prove_nothing(tmp_path):
    sample(tmp_path, 0, x=np.full((2, 4), np.nan, np.float32))
    with pytest.raises(VerificationError, match="x of a sample is NaN"):
        described(tmp_path, MLP, precision="fp16")
