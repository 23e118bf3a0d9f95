"""How large the values inside a graph become, as seen in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unified_backend.graph.cast import float_values
from unified_backend.graph.files import read_whole, write_whole
from unified_backend.tensors import Array

__all__ = ["ranges"]


def ranges(path: Path, feeds: Sequence[Mapping[str, Array]], folder: Path) -> dict[str, float]:
    """Value -> its largest absolute value in FP32, over some runs by ONNX Runtime on the CPU; NaN counts for nothing.

    Args:
        path: the ONNX file.
        feeds: the inputs of each run.
        folder: for a copy of the model with every value among its outputs, which is removed.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    model = read_whole(path)
    graph = model.graph
    known = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output if name}
    inner = sorted((float_values(model) & made) - known)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner)
    names = [*inner, *(value.name for value in graph.output if value.name in known and value.name in made)]
    scratch = folder / "observed"
    scratch.mkdir()
    try:
        write_whole(model, scratch / "observed.onnx")
        del model
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(scratch / "observed.onnx"), options, ["CPUExecutionProvider"])
        found: dict[str, float] = {}
        for one in feeds:
            for name, array in zip(names, session.run(names, dict(one)), strict=True):
                if array.dtype == np.float32:
                    largest = float(np.nanmax(np.abs(array), initial=0.0))
                    found[name] = max(found.get(name, 0.0), largest)
        return found
    finally:
        for file in scratch.iterdir():
            file.unlink()
        scratch.rmdir()
