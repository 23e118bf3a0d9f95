"""A `model.py` for backends/onnxruntime: stands in for Triton's own backend, which the embedded Triton has not got.

It holds a config against the model as that one does at load (onnxruntime_backend, src/onnxruntime.cc: ValidateInputs,
ValidateOutputs; backend, CompareDimsSupported), and runs the file of the version folder. All else is Triton's own core.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

_TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)", "TYPE_INT32": "tensor(int32)"}
_LEVELS = {0: "ORT_ENABLE_ALL", -1: "ORT_ENABLE_BASIC", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        graph = (config.get("optimization") or {}).get("graph") or {}
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, _LEVELS[int(graph.get("level", 0))]
        )
        self.session = onnxruntime.InferenceSession(str(path), options)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != len(config["input"]):
            raise pb_utils.TritonModelException(f"configuration expects {len(config['input'])} inputs")
        for rows, there, exact in ((config["input"], inputs, False), (config["output"], outputs, True)):
            for row in rows:
                self._check(row, {one.name: one for one in there}[row["name"]], exact)
        self.outputs = [row["name"] for row in config["output"]]

    def _check(self, row, own, exact):
        dims = [int(size) for size in (row.get("reshape") or {}).get("shape", row["dims"])]
        mine = [size if isinstance(size, int) else -1 for size in own.shape]
        if self.batched:
            dims = [-1, *dims]
            if mine[:1] != [-1]:
                raise pb_utils.TritonModelException(f"the first dimension of {row['name']} must be -1")
        fits = len(dims) == len(mine) and all(
            one == other or (not exact and -1 in (one, other)) for one, other in zip(dims, mine, strict=False)
        )
        if _TYPES[row["data_type"]] != own.type or not fits:
            raise pb_utils.TritonModelException(f"{row['name']} is {own.type} {mine} in the model, not {dims}")

    def execute(self, requests):
        responses = []
        for request in requests:
            feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            answers = self.session.run(self.outputs, feeds)
            tensors = [pb_utils.Tensor(name, np.asarray(one)) for name, one in zip(self.outputs, answers, strict=True)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
