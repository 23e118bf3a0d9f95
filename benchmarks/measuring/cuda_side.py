"""What benchmarks/gpu.py compares with, in a process of its own: ONNX Runtime on CUDA without a server.

python cuda_side.py FILE BATCH TF32 [REFERENCE]

Prints {"host": milliseconds, "device": milliseconds} as JSON; with a file to compare with also `max_rel`, `mean_rel`,
`top1` on photographs.
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
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # as torch_side normalises bytes
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


def photographs() -> np.ndarray[Any, Any]:
    """[N, 3, 224, 224] of bytes: scikit-image's colour photographs, the middle of each."""
    from skimage import data, transform

    names = ("astronaut", "chelsea", "coffee", "rocket")
    pictures = [getattr(data, name)() for name in names]
    small = [transform.resize(picture[:300, -300:], SHAPE[1:], preserve_range=True) for picture in pictures]
    mirrored = [picture[:, ::-1] for picture in small]
    return np.stack([*small, *mirrored]).round().astype(np.uint8).transpose(0, 3, 1, 2)


def compared(file: str, reference: str, dtype: type) -> dict[str, float]:
    """How far the network's answers to photographs are from another's, on the GPU and without TF32."""
    images = photographs()
    if dtype is np.float32:
        mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (MEAN, DEVIATION))
        images = (images - mean) / deviation
    expected, answer = (session(one, use_tf32="0").run(None, {"input": images})[0] for one in (reference, file))
    errors, largest = np.abs(expected - answer), float(np.abs(expected).max())
    same = float((expected.argmax(1) == answer.argmax(1)).mean())
    return {"max_rel": float(errors.max()) / largest, "mean_rel": float(errors.mean()) / largest, "top1": same}


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(4)
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    file, batch, tf32 = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    dtype = np.uint8 if file.endswith("_uint8.onnx") else np.float32
    images = np.random.default_rng(0).integers(0, 255, (batch, *SHAPE)).astype(dtype)
    found = {"host": from_host(file, images, tf32), "device": on_device(file, images, tf32)}
    if len(sys.argv) > 4:
        found |= compared(file, sys.argv[4], dtype)
    print(json.dumps(found))
