"""How far answers may be from those expected, by the type that a model computes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from unified_backend.formats.onnx import coarsest_float
from unified_backend.tensors import Array, Signature, TensorSpec
from unified_backend.verification import Sample, verify

X = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)


class Off:
    """Answers its input, off by a share of it."""

    signature = Signature((TensorSpec("x", "FP32", ("N", 4)),), (TensorSpec("y", "FP32", ("N", 4)),))

    def __init__(self, share: float) -> None:
        self._share = share

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Any = None) -> list[Array]:
        return [feeds["x"] * np.float32(1 + self._share)]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("computed_in", "share", "passed"),
    [("FP32", 5e-4, True), ("FP32", 5e-3, False), ("FP16", 5e-3, True), ("FP16", 5e-2, False), ("BF16", 5e-2, True)],
)
def test_fp32_outputs_of_a_coarser_model_are_held_to_what_it_computes_in(
    computed_in: str, share: float, passed: bool
) -> None:
    (row,) = verify(Off(share), [Sample(2, {"x": X}, {"y": X})], computed_in=computed_in)
    assert row.passed is passed


def test_a_tolerance_of_the_users_is_what_counts() -> None:
    (row,) = verify(Off(5e-3), [Sample(2, {"x": X}, {"y": X})], tolerance=1e-3, computed_in="BF16")
    assert not row.passed


@pytest.mark.parametrize(
    ("weight", "cast", "expected"),
    [
        (TensorProto.FLOAT, TensorProto.FLOAT, "FP32"),
        (TensorProto.FLOAT16, TensorProto.FLOAT, "FP16"),
        (TensorProto.FLOAT, TensorProto.FLOAT16, "FP16"),
        (TensorProto.FLOAT16, TensorProto.BFLOAT16, "BF16"),
        (TensorProto.DOUBLE, TensorProto.INT64, "FP32"),
    ],
)
def test_weights_and_casts_say_what_a_model_computes_in(tmp_path: Path, weight: int, cast: int, expected: str) -> None:
    value = numpy_helper.from_array(np.ones(4, np.float32), "w")
    if weight != TensorProto.FLOAT:
        value = helper.make_tensor("w", weight, [4], [1.0] * 4)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=cast)],
        "casts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", cast, ["N", 4])],
        [value],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert coarsest_float(tmp_path / "model.onnx") == expected
