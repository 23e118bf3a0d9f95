"""A Python-backend model as most are written: each request of the batch is run by itself."""

from __future__ import annotations

import json

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op_thread_count"]["string_value"])
        self.session = onnxruntime.InferenceSession(
            parameters["file"]["string_value"],
            options,
            providers=[parameters.get("provider", {}).get("string_value", "CPUExecutionProvider")],
        )

    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "input")
            (output,) = self.session.run(None, {"input": tensor.as_numpy()})
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("output", output)]))
        return responses
