"""Writes an ONNX model in another format, in a process of its own: converters crash, and report success all the same.

`python -m unified_backend.exports.writing` is that process.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.engines import Canonical
from unified_backend.engines.apart import answer_apart
from unified_backend.engines.printed import printed
from unified_backend.errors import EngineError
from unified_backend.settings import Settings
from unified_backend.tensors import Signature

__all__ = ["FILES"]

FILES = {"mnn": "model.mnn", "openvino": "model.xml"}  # format -> the file that is the model
_REASON = re.compile(r"not support|unsupport|error|fail|invalid|can't|cannot", re.IGNORECASE)
_STAMP = re.compile(r"^\[[\d:]+\]\s*(?:[\w./]*:\d+:\s*)?")
_MOST_LINES = 4


def _write(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make `FILES[format]` in the folder; which version of what made it."""
    os.chdir(job["folder"])  # MNN's converter leaves temporary files where it is started
    match job["to"]:
        case "mnn":
            _write_mnn(job)
            return {"by": f"mnn {importlib.metadata.version('mnn')}"}
        case "openvino":
            _write_openvino(job)
            return {"by": f"openvino {importlib.metadata.version('openvino')}"}
    raise AssertionError(job["to"])


def _write_mnn(job: Mapping[str, Any]) -> None:
    """By the extension alone: MNN's tools in Python call pip when they are imported."""
    import _tools

    made = Path(job["folder"]) / FILES["mnn"]
    arguments = ["mnnconvert", "-f", "ONNX", "--modelFile", job["path"], "--MNNModel", str(made), "--bizCode", "MNN"]
    arguments += ["--fp16"] if job["fp16"] else []
    arguments += ["--weightQuantBits", str(job["weight_bits"])] if job["weight_bits"] else []
    with printed() as lines:
        _tools.mnnconvert(arguments)
    if not made.is_file():
        said = [_STAMP.sub("", line) for line in lines]
        reasons = [line for line in said if _REASON.search(line)] or said[-1:]
        raise EngineError(
            f"{job['label']}: MNN's converter cannot convert the model",
            "; ".join(dict.fromkeys(reasons[:_MOST_LINES]))[:600] or "it wrote no file and gave no reason",
            "Choose another format (--to openvino, --to onnx)",
        )


def _write_openvino(job: Mapping[str, Any]) -> None:
    import openvino

    from unified_backend.engines.openvino_reading import read

    canonical = Canonical(job["label"], Path(job["path"]), "", Signature.from_json(job["signature"]))
    model = read(canonical, Settings())
    openvino.save_model(model, Path(job["folder"]) / FILES["openvino"], compress_to_fp16=job["fp16"])


if __name__ == "__main__":
    answer_apart(_write)
