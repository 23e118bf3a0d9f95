"""What benchmarks/gpu.py compares with, in a process of its own: ONNX Runtime on CUDA without a server.

python cuda_side.py FILE BATCH TF32      # prints {"host": milliseconds, "device": milliseconds} as JSON
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

SHAPE = (3, 224, 224)
RUNS = 30


def milliseconds(run: Callable[[], Any]) -> float:
    for _ in range(5):
        run()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return round(1000 * statistics.median(times), 3)


def session(file: str, **options: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=[("CUDAExecutionProvider", options), "CPUExecutionProvider"])


def from_host(file: str, images: np.ndarray[Any, Any], tf32: str) -> float:
    """A session as most are made: NumPy in, NumPy out."""
    made = session(file, use_tf32=tf32)
    return milliseconds(lambda: made.run(None, {"input": images}))


def on_device(file: str, images: np.ndarray[Any, Any], tf32: str) -> float:
    """The GPU's limit for this engine: tensors stay there, channels last, one CUDA graph."""
    made = session(file, use_tf32=tf32, prefer_nhwc="1", enable_cuda_graph="1")
    binding = made.io_binding()
    binding.bind_ortvalue_input("input", onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
    output = onnxruntime.OrtValue.ortvalue_from_shape_and_type((len(images), 1000), np.float32, "cuda", 0)
    binding.bind_ortvalue_output("output", output)
    return milliseconds(lambda: made.run_with_iobinding(binding))


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(4)
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    file, batch, tf32 = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    dtype = np.uint8 if file.endswith("_uint8.onnx") else np.float32
    images = np.random.default_rng(0).integers(0, 255, (batch, *SHAPE)).astype(dtype)
    found = {"host": from_host(file, images, tf32), "device": on_device(file, images, tf32)}
    print(json.dumps(found))
