"""Models in the formats of MNN and OpenVINO, made from real ONNX by those engines' own converters."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["CLS", "DET", "MAGIKA", "SQUEEZENET", "ir", "mnn"]

# MNN's command calls pip when it is imported; the extension behind it does not.
_MNN = """
import sys, _tools
form = "TFLITE" if sys.argv[1].endswith(".tflite") else "ONNX"
_tools.mnnconvert(["mnnconvert", "-f", form, "--modelFile", sys.argv[1], "--MNNModel", *sys.argv[2:]])
"""
_IR = """
import sys, openvino
openvino.save_model(openvino.Core().read_model(sys.argv[1]), sys.argv[2], compress_to_fp16=len(sys.argv) > 3)
"""


def _packaged(package: str, pattern: str) -> Path:
    """A model file of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is not installed"
    return next(Path((found.submodule_search_locations or [])[0]).glob(pattern))


CLS = _packaged("rapidocr_onnxruntime", "models/*_cls_infer.onnx")
DET = _packaged("rapidocr_onnxruntime", "models/*_det_infer.onnx")
MAGIKA = _packaged("magika", "models/standard_v3_3/model.onnx")
SQUEEZENET = _packaged("onnx", "backend/test/data/light/light_squeezenet.onnx")


def mnn(source: Path, *options: str) -> Path:
    """The `.mnn` file made of an ONNX or TensorFlow Lite file; do not write to it."""
    return _made(_MNN, source, "model.mnn", *options)


def ir(source: Path, *, fp16: bool = False) -> Path:
    """The `.xml` file, with its `.bin` beside it, made of an ONNX file; do not write to them."""
    return _made(_IR, source, "model.xml", *(["fp16"] if fp16 else []))


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="engine-files-")


@functools.cache
def _made(script: str, source: Path, name: str, *options: str) -> Path:
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    command = [sys.executable, "-c", script, str(source), name, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (folder / name).is_file(), done.stdout + done.stderr
    return folder / name
