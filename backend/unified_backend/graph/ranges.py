"""How large the values inside a graph become, as seen in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unified_backend.engines import Runner
from unified_backend.graph.cast import Names, float_values
from unified_backend.graph.files import read_whole, write_whole
from unified_backend.tensors import Array

if TYPE_CHECKING:
    import onnx

__all__ = ["ranges"]


def ranges(
    path: Path, feeds: Sequence[Mapping[str, Array]], folder: Path, opened: Callable[[Path], Runner]
) -> dict[str, float]:
    """Value -> its largest absolute value in FP32, over some runs; NaN counts for nothing.

    Args:
        path: the ONNX file.
        feeds: the inputs of each run.
        folder: for a copy of the model that measures its values, which is removed.
        opened: that copy, unoptimised.
    """
    model = read_whole(path)
    measured = _measure(model)
    if not measured:
        return {}
    scratch = folder / "observed"
    scratch.mkdir()
    try:
        write_whole(model, scratch / "observed.onnx")
        del model
        runner = opened(scratch / "observed.onnx")
        found: dict[str, float] = {}
        for one in feeds:
            largest = {
                name: float(array) for name, array in zip(measured, runner.run(one, [*measured.values()]), strict=True)
            }
            largest |= {
                name: float(np.nanmax(np.abs(array), initial=0.0))
                for name, array in one.items()
                if array.dtype == np.float32
            }
            found = {name: max(found.get(name, 0.0), value) for name, value in largest.items()}
        return found
    finally:
        for file in scratch.iterdir():
            file.unlink()
        scratch.rmdir()


def _measure(model: onnx.ModelProto) -> dict[str, str]:
    """Have the graph give the largest absolute value of each FP32 value inside it; value -> output of its own.

    The numbers and not the values are outputs: of a detector's all together took more memory than its host had.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    names = Names(graph)
    made = {name for node in graph.node for name in node.output if name}
    flat, zero = names.new("flat_shape"), names.new("no_value")  # the largest of an empty tensor is an error
    graph.initializer.append(helper.make_tensor(flat, TensorProto.INT64, [1], [-1]))
    graph.initializer.append(helper.make_tensor(zero, TensorProto.FLOAT, [1], [0.0]))
    outputs = {}
    for name in sorted(float_values(model) & made):
        row, absolute, joined, largest = (names.new(f"{name}_{part}") for part in ("row", "abs", "joined", "largest"))
        graph.node.extend(
            (
                helper.make_node("Reshape", [name, flat], [row]),
                helper.make_node("Abs", [row], [absolute]),
                helper.make_node("Concat", [absolute, zero], [joined], axis=0),
                helper.make_node("ReduceMax", [joined], [largest], keepdims=0),
            )
        )
        graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
        outputs[name] = largest
    return outputs
