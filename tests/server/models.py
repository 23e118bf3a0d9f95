"""ONNX models for tests: real ones out of installed packages, and small ones written as text."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime

__all__ = [
    "LIGHT",
    "OCR",
    "answers_of",
    "identity",
    "magika",
    "newest_opset",
    "package_folder",
    "parsed",
    "session",
    "with_external_data",
]


def package_folder(package: str) -> Path:
    """Where a package is installed; it is not imported."""
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is not installed"
    return Path((found.submodule_search_locations or [])[0])


LIGHT = {path.stem: path for path in sorted((package_folder("onnx") / "backend/test/data/light").glob("light_*.onnx"))}
_OCR_FOLDER = package_folder("rapidocr_onnxruntime") / "models"
OCR = {part: next(_OCR_FOLDER.glob(f"*_{part}_infer.onnx")) for part in ("det", "cls", "rec")}


def magika() -> Path:
    """The file-type classifier: int32 [N, 2048] -> float [N, 214]."""
    return package_folder("magika") / "models/standard_v3_3/model.onnx"


def parsed(
    body: str, opset: int = 17, ir_version: int = 9, domains: Mapping[str, int] | None = None, check: bool = True
) -> onnx.ModelProto:
    """A model from ONNX's text form.

    Args:
        body: the graph, `name (inputs) => (outputs) <initializers> { nodes }`, and functions after it.
        domains: operator domains beside ONNX's own, with their versions.
        check: by ONNX's own checker, which wants a rank of every input and output; exporters do not always give it.
    """
    imports = ", ".join(f'"{name}" : {version}' for name, version in {"": opset, **(domains or {})}.items())
    model = onnx.parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{imports}]>\n{body}")
    if check:
        onnx.checker.check_model(model)
    return model


def identity(elements: str, dimensions: str = "N, 3") -> onnx.ModelProto:
    """`Y = X`, of a type as ONNX's text form spells it (`float16`, `string`, ...)."""
    return parsed(f"g ({elements}[{dimensions}] X) => ({elements}[{dimensions}] Y) {{ Y = Identity (X) }}")


def with_external_data(model: onnx.ModelProto, folder: Path, location: str) -> Path:
    """Save `model` as `folder/weights` with every initializer in the file `location`, relative to `folder`."""
    path = folder / "weights"
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0, convert_attribute=False)
    return path


@functools.cache
def newest_opset() -> int:
    """The newest opset that the installed ONNX Runtime accepts."""
    for opset in range(onnx.defs.onnx_opset_version(), 0, -1):
        if _accepts(parsed("g (float[N] X) => (float[N] Y) { Y = Neg (X) }", opset).SerializeToString()):
            return opset
    raise AssertionError("ONNX Runtime accepts no opset")


def _accepts(model: bytes) -> bool:
    try:
        session(model)
    except Exception:  # noqa: BLE001 - whatever it raises is a refusal
        return False
    return True


def session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the model as it is, with its own defaults: what answers are compared with."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def answers_of(reference: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Output name -> what ONNX Runtime answers without any server."""
    names = [output.name for output in reference.get_outputs()]
    return dict(zip(names, reference.run(names, dict(inputs)), strict=True))
