"""Repairs of an ONNX model: what they change in it, and that they do not change what it computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from unified_backend.conversion.normalise import normalise
from unified_backend.conversion.repair import MAX_IR_VERSION, MAX_OPSET

X = np.array([[1, -2, 3]], np.float32)


def build(opset: int = 17, ir_version: int = 8, node: str = "Add", listed: bool = False) -> onnx.ModelProto:
    """Y = X + w."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "XY")
    weights = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    inputs = [x, helper.make_tensor_value_info("w", TensorProto.FLOAT, [3])] if listed else [x]
    graph = helper.make_graph([helper.make_node(node, ["X", "w"], ["Y"])], "g", inputs, [y], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def normalised(tmp_path, model: onnx.ModelProto) -> tuple[list[str], onnx.ModelProto | None]:
    onnx.save_model(model, tmp_path / "source")
    (tmp_path / "out").mkdir()
    changes = normalise(tmp_path / "source", [], tmp_path / "out")
    written = tmp_path / "out" / "model.onnx"
    return changes, onnx.load(written) if written.exists() else None


def answer(model: onnx.ModelProto) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"X": X})[0]


def test_a_fit_model_is_left_alone(tmp_path):
    assert normalised(tmp_path, build()) == ([], None)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_leave_the_inputs(tmp_path, ir_version):
    source = build(ir_version=ir_version, listed=True)
    changes, model = normalised(tmp_path, source)
    assert changes == ["1 initializers taken off the inputs"]
    assert [value.name for value in model.graph.input] == ["X"]
    assert np.array_equal(answer(model), answer(source))


def test_a_newer_ir_version_is_written_as_one_that_engines_read(tmp_path):
    changes, model = normalised(tmp_path, build(ir_version=MAX_IR_VERSION + 1))
    assert changes == [f"IR version {MAX_IR_VERSION + 1} written as {MAX_IR_VERSION}"]
    assert answer(model).tolist() == [[2, 0, 6]]


def test_a_newer_opset_in_which_nothing_used_has_changed_is_written_as_an_older_one(tmp_path):
    newest = onnx.defs.onnx_opset_version()
    changes, model = normalised(tmp_path, build(opset=newest))
    assert changes == [f"opset {newest} written as {MAX_OPSET}, between which no operator of the model changed"]
    assert answer(model).tolist() == [[2, 0, 6]]


def test_a_newer_opset_with_an_operator_unknown_to_onnx_is_left_alone(tmp_path):
    changes, _ = normalised(tmp_path, build(opset=onnx.defs.onnx_opset_version(), node="NoSuchOperator"))
    assert changes == []


def test_companions_follow_the_repaired_model(tmp_path):
    model = build(listed=True)
    onnx.save_model(model, tmp_path / "source", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "out").mkdir()
    normalise(tmp_path / "source", [tmp_path / "w.bin"], tmp_path / "out")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert session.run(None, {"X": X})[0].tolist() == [[2, 0, 6]]
