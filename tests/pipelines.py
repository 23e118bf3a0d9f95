"""A small pipeline for tests: a stage makes any number of items, a model takes them, a stage joins the answers."""

from __future__ import annotations

from pathlib import Path

import onnx

__all__ = ["DEFINITION", "write_pipeline"]

MAKE = """
import numpy as np
from unified_backend.stages.user import stage

@stage(inputs={"n": "INT32[1,1]"}, outputs={"x": "FP32[-1,2]", "unused": "FP32[-1]"})
def make(n):
    if n[0, 0] < 0:
        raise ValueError("n is negative")
    return np.arange(2 * n[0, 0]).reshape(-1, 2).astype(np.float32), np.zeros(n[0, 0])
"""
JOIN = """
import numpy as np
from unified_backend.stages.user import stage

@stage(inputs={"x": "FP32[-1,2]", "y": "FP32[-1,1]"}, outputs={"text": "STRING[-1,1]", "count": "INT32[1,1]"})
def join(x, y):
    texts = [f"{a:.0f}+{b:.0f}={c:.0f}" for (a, b), (c,) in zip(x, y)]
    return np.array(texts, object).reshape(-1, 1), [[len(x)]]
"""
ADD = """<ir_version: 9, opset_import: ["":17]> g (float[N,2] x) => (float[N,1] y)
<int64[1] axes = {1}> { y = ReduceSum <keepdims = 1> (x, axes) }"""
DEFINITION = """
name: sums
max_batch_size: 4
max_items: 16
inputs:
  n: {dtype: INT32, dims: [1]}
outputs: [text, count]
steps:
  - stage: make.py
    inputs: [n]
    outputs: {x: pairs, unused: unused}
  - model: add
    from: add.onnx
    inputs: {x: pairs}
    outputs: {y: sums}
  - stage: join.py
    inputs: {x: pairs, y: sums}
    outputs: [text, count]
"""


def write_pipeline(folder: Path, definition: str = DEFINITION) -> Path:
    """The pipeline's YAML file, written into `folder` with what it names."""
    (folder / "make.py").write_text(MAKE)
    (folder / "join.py").write_text(JOIN)
    onnx.save(onnx.parser.parse_model(ADD), folder / "add.onnx")
    path = folder / "sums.yaml"
    path.write_text(definition)
    return path
