"""The toolchains there are: for each framework its lock file, its worker and the formats it converts."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import re
import sys
from pathlib import Path

__all__ = ["TOOLCHAINS", "Toolchain", "toolchain_for"]

_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)(?!.*;)")
_SCHEMA = 1  # raised when what is done to an environment beside installing its lock changes


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """One framework in an environment of its own.

    Attributes:
        lock: requirements with hashes, as pip reads them.
        worker: the module that runs in it.
        imports: modules that must import for the environment to be whole.
        formats: keys of `formats.FORMATS` that it converts.
        summary: what it holds, in words.
        advice: what it needs beside pip's usual index; empty if nothing.
        prelude: Python that makes its packages importable here, in one line.
    """

    name: str
    lock: Path
    worker: str
    imports: tuple[str, ...]
    formats: frozenset[str]
    summary: str
    advice: str = ""
    prelude: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of all that the environment's bytes depend on, in hex."""
        parts = (str(_SCHEMA), f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine())
        return hashlib.sha256("\0".join(parts).encode() + b"\0" + self.lock.read_bytes()).hexdigest()

    @property
    def pinned(self) -> list[tuple[str, str]]:
        """Name and version of every package of the lock that is installed whatever the machine is."""
        lines = map(_PINNED.match, self.lock.read_text().splitlines())
        return [(line[1], line[2]) for line in lines if line]


TOOLCHAINS = {
    toolchain.name: toolchain
    for toolchain in (
        Toolchain(
            "tensorflow",
            Path(__file__).parent / "tensorflow.lock",
            "unified_backend.toolchains.workers.tensorflow",
            ("tensorflow", "tf2onnx.tfonnx", "tf_keras", "keras", "ai_edge_litert.interpreter", "onnxsim"),
            frozenset({"savedmodel", "graphdef", "checkpoint", "keras-hdf5", "keras", "tflite"}),
            "TensorFlow 2.21, Keras 2 and 3, tf2onnx 1.17; 1.7 GB",
        ),
        Toolchain(
            "torch",
            Path(__file__).parent / "torch.lock",
            "unified_backend.toolchains.workers.torch",
            ("torch", "torch.onnx", "onnxscript", "onnxruntime", "onnxsim"),
            frozenset({"torchscript", "torch-export"}),
            "PyTorch 2.13 for CPUs, its exporters; 1 GB",
            "On x86-64 PyTorch's builds for CPUs are in its own package index, and known here for Python 3.11: "
            "add that index to pip's configuration",
        ),
        Toolchain(
            "mxnet",
            Path(__file__).parent / "mxnet.lock",
            "unified_backend.toolchains.workers.mxnet",
            ("mxnet", "mxnet.onnx", "onnx", "onnxsim"),
            frozenset({"mxnet"}),
            "MXNet 1.9 for CPUs and its exporter; 0.4 GB",
            "MXNet has wheels for x86-64 alone, and needs the system's libgomp1 and libquadmath0",
            "import numpy; [setattr(numpy, kind.__name__, kind) for kind in (bool, object, int, float)]",
        ),
        Toolchain(
            "trees",
            Path(__file__).parent / "trees.lock",
            "unified_backend.toolchains.workers.trees",
            ("sklearn", "skops.io", "lightgbm", "xgboost", "skl2onnx", "onnxmltools", "onnxsim"),
            frozenset({"sklearn", "lightgbm", "xgboost"}),
            "scikit-learn 1.9, LightGBM 4.7, XGBoost 3.2, their converters; 0.5 GB",
            "LightGBM needs the system's libgomp1",
        ),
        Toolchain(
            "paddle",
            Path(__file__).parent / "paddle.lock",
            "unified_backend.toolchains.workers.paddle",
            ("paddle", "onnxsim"),
            frozenset({"paddle"}),
            "PaddlePaddle 3.3 for CPUs, paddle2onnx 2.1; 1 GB",
            "PaddlePaddle needs the system's libgomp1",
        ),
    )
}


def toolchain_for(form: str) -> Toolchain | None:
    """The toolchain that converts a format, if there is one."""
    return next((toolchain for toolchain in TOOLCHAINS.values() if form in toolchain.formats), None)
