"""A model with Q/DQ in FP8 around its layers: scales from calibration data, compared with FP32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.engines import Canonical
from unified_backend.engines.reference import open_reference
from unified_backend.errors import ConfigError
from unified_backend.forms.quantised import split
from unified_backend.graph.files import MODEL, read_whole, write_whole
from unified_backend.graph.float8 import OPSET, float8
from unified_backend.graph.ranges import ranges
from unified_backend.settings import Settings
from unified_backend.tensors import Array

__all__ = ["in_float8"]


def in_float8(
    canonical: Canonical,
    settings: Settings,
    data: Sequence[Mapping[str, Array]],
    judge: Callable[[Path], None],
    folder: Path,
) -> dict[str, Any]:
    """Write the model in FP8; facts of it.

    Args:
        data: the network's inputs, one batch each.
        judge: compares a model with FP32.
        folder: gets `model.onnx`.

    Raises:
        ConfigError: no layer can be quantised.
        VerificationError: it answers otherwise than in FP32.
    """
    from onnx import version_converter

    label, path = canonical.label, canonical.path
    learnt, checked = split(data)
    seen = ranges(path, learnt, folder, lambda file: open_reference(label, file, settings)[0])
    model = read_whole(path)
    if next((one.version for one in model.opset_import if not one.domain), 0) < OPSET:
        model = version_converter.convert_version(model, OPSET)
    made = float8(model, seen, settings.exclude)
    if not made.layers:
        why = next(iter(made.kept.values()), "it has no layer with weights")
        raise ConfigError(f"{label}: no layer can be quantised to fp8", why, "Leave the parameter `precision` out")
    write_whole(made.model, folder / MODEL)
    judge(folder / MODEL)
    return {"nodes": made.layers, "kept": dict(made.kept), "batches": [len(learnt), len(checked)]}
