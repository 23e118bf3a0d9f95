"""Is a model batchable? Shapes propose, a real run at batch 2 decides."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto
from unified_backend.batching import Batching, Verdict, prove_batching
from unified_backend.engines.reference import open_reference
from unified_backend.settings import Settings

MODELS = {
    "row by row": (Verdict.PROVEN, "(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"),
    "other symbols on the output": (Verdict.PROVEN, "(float[N,4] x) => (float[M,4] y) { y = Relu(x) }"),
    "a vector": (Verdict.PROVEN, "(float[N] x) => (float[N] y) { y = Relu(x) }"),
    "strings": (Verdict.PROVEN, "(string[N] x) => (string[N] y) { y = Identity(x) }"),
    "bfloat16": (Verdict.PROVEN, "(bfloat16[N,3] x) => (bfloat16[N,3] y) { y = Identity(x) }"),
    "random answers": (Verdict.PROVEN, "(float[N,4] x) => (float[N,4] y) { y = RandomNormalLike(x) }"),
    "dynamic sizes": (Verdict.PROVEN, "(float[N,3,H,W] x) => (float[N,3,1,1] y) { y = GlobalAveragePool(x) }"),
    "softmax over the batch": (Verdict.ROWS_DIFFER, "(float[N,4] x) => (float[N,4] y) { y = Softmax<axis=0>(x) }"),
    "time first": (
        Verdict.ROWS_DIFFER,
        "(float[T,4] x) => (float[T,4] y) { a = Constant<value_int=0>() y = CumSum(x,a)}",
    ),
    "fixed first dimension": (Verdict.IMPOSSIBLE, "(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"),
    "scalar": (Verdict.IMPOSSIBLE, "(float x) => (float y) { y = Relu(x) }"),
    "reduced over the batch": (
        Verdict.IMPOSSIBLE,
        "(float[N,4] x) => (float[M,4] y) { a = Constant<value_ints=[0]>() y = ReduceSum(x,a) }",
    ),
    "batch 1 in a reshape": (
        Verdict.IMPOSSIBLE,
        "(float[N,4] x) => (float[N,4] y) { s = Constant<value_ints=[1,4]>() y = Reshape(x,s) }",
    ),
    "no input": (Verdict.IMPOSSIBLE, "() => (float[2] y) { y = Constant<value_floats=[1.0,2.0]>() }"),
}


def prove(tmp_path, text: str, fixed=None) -> Batching:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["":17]> g {text}')
    onnx.save_model(model, tmp_path / "m")
    runner, _ = open_reference("m/1", tmp_path / "m", Settings())
    return prove_batching(runner, fixed or {})


@pytest.mark.parametrize(("verdict", "text"), MODELS.values(), ids=MODELS)
def test_the_verdict_is_what_a_run_shows(tmp_path, verdict, text):
    found = prove(tmp_path, text)
    assert found.verdict is verdict, found.reason
    assert found.reason
    assert Batching.from_json(found.to_json()) == found


def test_a_small_vocabulary_is_respected(tmp_path):
    weights = onnx.helper.make_tensor("table", TensorProto.FLOAT, [2, 3], range(6))
    node = onnx.helper.make_node("Gather", ["table", "ids"], ["y"])
    ids = onnx.helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 5])
    y = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, 3])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [ids], [y], [weights]),
        ir_version=9,
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    onnx.save_model(model, tmp_path / "m")
    runner, _ = open_reference("m/1", tmp_path / "m", Settings())
    found = prove_batching(runner, {})
    assert found.verdict is Verdict.PROVEN
    assert found.recipe.bound == 2


PICKY = "(float[N,L] x) => (float[N,50] y) { s = Constant<value_ints=[-1,50]>() r = Reshape(x,s) y = Relu(r) }"


def test_dimensions_that_the_config_fixes_are_used(tmp_path):
    assert prove(tmp_path, PICKY, {"x": {1: 50}}).verdict is Verdict.PROVEN


def test_shapes_are_believed_where_no_sample_runs_and_the_symbols_agree(tmp_path):
    found = prove(tmp_path, PICKY.replace("-1,50", "-1,51").replace("N,50", "N,51"))
    assert (found.verdict, found.recipe) == (Verdict.UNPROVEN, None)
    other = prove(tmp_path, PICKY.replace("-1,50", "-1,51").replace("(float[N,50]", "(float[M,51]"))
    assert other.verdict is Verdict.IMPOSSIBLE
