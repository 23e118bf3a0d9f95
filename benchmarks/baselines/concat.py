"""A Python-backend model that joins the requests of a batch, runs once, and splits the result."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op_thread_count"]["string_value"])
        self.session = onnxruntime.InferenceSession(
            parameters["file"]["string_value"], options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        batch = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        (output,) = self.session.run(None, {"input": batch})
        responses, start = [], 0
        for rows in map(len, inputs):
            part = pb_utils.Tensor("output", output[start : start + rows])
            responses.append(pb_utils.InferenceResponse([part]))
            start += rows
        return responses
