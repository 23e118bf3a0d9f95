"""Exported graphs after repair: what computed before computes the same, and what no runtime took is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from unified_backend.conversion.interface import publish
from unified_backend.conversion.repair import free_batch, repair, unknown_operators
from unified_backend.tensors import TensorSpec

X = np.linspace(-4, 4, 24, dtype=np.float32).reshape(2, 12)


def made(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    result: Sequence[int | str],
    opset: int = 18,
    dtype: int = TensorProto.FLOAT,
    **constants: np.ndarray,
) -> onnx.ModelProto:
    """A model with one input `x` and one output `y`."""
    x, y = helper.make_tensor_value_info("x", dtype, shape), helper.make_tensor_value_info("y", dtype, result)
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "made", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """ONNX Runtime's answer."""
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("opset", [11, 18])
def test_erfc_is_one_minus_erf(opset: int):
    model = made([helper.make_node("Erfc", ["x"], ["y"])], ["n", 12], ["n", 12], opset)
    assert unknown_operators(model) == {"Erfc": 1}
    assert repair(model) == ["Erfc written with ONNX operators (1)"]
    assert unknown_operators(model) == {}
    np.testing.assert_allclose(run(model, X), np.vectorize(math.erfc)(X), atol=3e-7)


def test_erfc_of_doubles_stays_double():
    model = made([helper.make_node("Erfc", ["x"], ["y"])], ["n", 12], ["n", 12], dtype=TensorProto.DOUBLE)
    repair(model)
    onnx.checker.check_model(model, full_check=True)
    answer = ReferenceEvaluator(model).run(None, {"x": X.astype(np.float64)})[0]
    assert answer.dtype == np.float64
    np.testing.assert_allclose(answer, np.vectorize(math.erfc)(X), atol=1e-7)


@pytest.mark.parametrize("approximate", [0, 1])
def test_gelu_of_tensorflow_lite_is_that_of_onnx(approximate: int):
    nodes = [
        helper.make_node("TFL_GELU", ["x"], ["middle"], approximate=approximate),
        helper.make_node("TFL_GELU", ["middle"], ["y"], approximate=approximate),
    ]
    model = made(nodes, ["n", 12], ["n", 12])
    formula = "tanh" if approximate else "none"
    twice = [
        helper.make_node("Gelu", ["x"], ["middle"], approximate=formula),
        helper.make_node("Gelu", ["middle"], ["y"], approximate=formula),
    ]
    expected = ReferenceEvaluator(made(twice, ["n", 12], ["n", 12], opset=20)).run(None, {"x": X})[0]
    assert repair(model) == ["TFL_GELU written with ONNX operators (2)"]
    np.testing.assert_allclose(run(model, X), expected, atol=1e-6)


def test_operators_inside_branches_are_repaired_and_counted():
    branch = helper.make_graph(
        [helper.make_node("Erfc", ["x"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["true"], ["y"], then_branch=branch, else_branch=branch)]
    model = made(nodes, ["n", 12], ["n", 12], true=np.array(True))
    assert unknown_operators(model) == {"Erfc": 2}
    repair(model)
    np.testing.assert_allclose(run(model, X), np.vectorize(math.erfc)(X), atol=3e-7)


def test_unknown_operators_are_named_unless_their_domain_is_allowed():
    nodes = [
        helper.make_node("TFL_CUSTOM", ["x"], ["a"]),
        helper.make_node("Special", ["a"], ["b"], domain="mine"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    model = made(nodes, ["n", 12], ["n", 12])
    assert unknown_operators(model) == {"TFL_CUSTOM": 1, "mine.Special": 1}
    assert unknown_operators(model, {"mine"}) == {"TFL_CUSTOM": 1}


def test_an_operator_of_a_later_opset_is_unknown():
    assert unknown_operators(made([helper.make_node("Gelu", ["x"], ["y"])], ["n", 12], ["n", 12], opset=18)) == {
        "Gelu": 1
    }


def test_a_graph_with_nothing_to_repair_is_left_as_it_is():
    model = made([helper.make_node("Relu", ["x"], ["y"])], ["n", 12], ["n", 12])
    before = model.SerializeToString()
    assert repair(model) == []
    assert model.SerializeToString() == before


def test_a_loop_that_declares_a_matrix_scalar_runs():
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Gather", ["carried", "step"], ["row"], axis=0),
            helper.make_node("Identity", ["carried"], ["carried_on"]),
        ],
        "body",
        [
            value("step", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("carried", TensorProto.FLOAT, []),
        ],
        [
            value("on", TensorProto.BOOL, []),
            value("carried_on", TensorProto.FLOAT, []),
            value("row", TensorProto.FLOAT, [12]),
        ],
    )
    nodes = [helper.make_node("Loop", ["two", "true", "x"], ["same", "y"], body=body)]
    model = made(nodes, [2, 12], [2, 12], two=np.array(2), true=np.array(True))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        run(model, X)
    assert repair(model) == ["shapes of values that loops carry left to inference (1)"]
    np.testing.assert_array_equal(run(model, X), X)


def freed_equals_fixed(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Free the batch, and compare a batch of 3 with its rows through the fixed model."""
    freed = free_batch(model)
    assert freed is not None
    x = np.random.default_rng(0).random((3, *shape), np.float32)
    rows = [run(model, x[row : row + 1]) for row in range(3)]
    np.testing.assert_allclose(run(freed, x), np.concatenate(rows), atol=1e-6)
    np.testing.assert_allclose(run(freed, x[:1]), rows[0], atol=1e-6)
    return freed


@pytest.mark.parametrize(
    "targets",
    [[[1, 12]], [[1, -1]], [[6, 2], [1, 12]], [[-1, 2], [1, 12]], [[4, 3], [2, 6], [1, 3, 4], [1, -1]]],
    ids=str,
)
def test_reshapes_take_the_batch_through(targets: list[list[int]]):
    names = ["x", *(f"r{number}" for number in range(len(targets)))]
    nodes = [helper.make_node("Reshape", [names[i], f"t{i}"], [names[i + 1]]) for i in range(len(targets))]
    nodes.append(helper.make_node("Relu", [names[-1]], ["y"]))
    constants = {f"t{number}": np.array(target) for number, target in enumerate(targets)}
    freed_equals_fixed(made(nodes, [1, 3, 4], [1, 12], **constants), (3, 4))


def test_one_shape_for_two_reshapes_is_freed_for_each():
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Reshape", ["weights", "target"], ["row"]),
        helper.make_node("Add", ["flat", "row"], ["y"]),
    ]
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    freed_equals_fixed(made(nodes, [1, 3, 4], [1, 12], target=np.array([1, 12]), weights=weights), (3, 4))


def test_slices_of_all_of_the_first_dimension_take_all_of_the_batch():
    nodes = [helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])]
    constants = {"starts": np.array([0, 1]), "ends": np.array([1, 3]), "axes": np.array([0, 1])}
    freed_equals_fixed(made(nodes, [1, 3, 4], [1, 2, 4], **constants), (3, 4))


def test_resizes_keep_the_batch():
    nodes = [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")]
    freed_equals_fixed(made(nodes, [1, 2, 3, 4], [1, 2, 6, 8], sizes=np.array([1, 2, 6, 8])), (2, 3, 4))


def test_recurrent_layers_start_from_zeros_at_any_batch():
    generator = np.random.default_rng(0)
    constants = {
        "w": generator.random((1, 20, 4), np.float32),
        "r": generator.random((1, 20, 5), np.float32),
        "zeros": np.zeros((1, 1, 5), np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r", "", "", "zeros", "zeros"], ["", "last"], hidden_size=5),
        helper.make_node("Squeeze", ["last", "axis"], ["y"]),
    ]
    freed_equals_fixed(made(nodes, [1, 3, 4], [1, 5], axis=np.array([0]), **constants), (3, 4))


def test_a_freed_batch_has_a_name_and_the_rest_of_the_shapes():
    freed = freed_equals_fixed(made([helper.make_node("Relu", ["x"], ["y"])], [1, 3, 4], [1, 3, 4]), (3, 4))
    for value in (*freed.graph.input, *freed.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, 4]


@pytest.mark.parametrize("shape", [[2, 3], ["n", 3], []], ids=str)
def test_a_model_without_a_first_dimension_of_one_is_not_freed(shape: list[int | str]):
    assert free_batch(made([helper.make_node("Relu", ["x"], ["y"])], shape, shape)) is None


def test_public_names_move_inner_tensors_of_the_same_name_away():
    nodes = [helper.make_node("Relu", ["x"], ["scores"]), helper.make_node("Neg", ["scores"], ["y"])]
    model = made(nodes, ["n", 12], ["n", 12])
    seen = TensorSpec("scores", "FP32", (None, 12))
    publish(
        model,
        {"x": TensorSpec("image", "FP32", (None, 12)), "unused": TensorSpec("x", "INT64", (None,))},
        {"y": seen},
        {},
    )
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["image", "x"]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    [answer] = session.run(["scores"], {"image": X, "x": np.zeros(2, np.int64)})
    np.testing.assert_array_equal(answer, -np.maximum(X, 0))


def test_public_names_may_be_swapped():
    model = made([helper.make_node("Exp", ["x"], ["y"])], ["n", 12], ["n", 12])
    publish(model, {"x": TensorSpec("y", "FP32", (None, 12))}, {"y": TensorSpec("x", "FP32", (None, 12))}, {})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_allclose(session.run(["x"], {"y": X})[0], np.exp(X), rtol=1e-5)


def test_names_reach_what_branches_take_from_outside():
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["inner"])], "branch", [], [helper.make_tensor_value_info("inner", 1, None)]
    )
    nodes = [helper.make_node("If", ["true"], ["y"], then_branch=branch, else_branch=branch)]
    model = made(nodes, ["n", 12], ["n", 12], true=np.array(True))
    publish(model, {"x": TensorSpec("a", "FP32", None)}, {"y": TensorSpec("inner", "FP32", None)}, {})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(session.run(["inner"], {"a": X})[0], -X)


def test_an_output_without_a_shape_gets_the_rank_of_its_answers():
    model = made([helper.make_node("Relu", ["x"], ["y"])], ["n", 12], ["n", 12])
    model.graph.output[0].type.tensor_type.ClearField("shape")
    publish(model, {"x": TensorSpec("x", "FP32", None)}, {"y": TensorSpec("y", "FP32", None)}, {"y": 2})
    assert len(model.graph.output[0].type.tensor_type.shape.dim) == 2
    onnx.checker.check_model(model)
