"""A model with Q/DQ in FP8 around its layers: scales from calibration data, compared with FP32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_backend.engines import Canonical, Runner
from unified_backend.engines.reference import open_reference
from unified_backend.errors import ConfigError
from unified_backend.forms.quantised import split
from unified_backend.forms.worst_layers import Written, literal, without_the_worst
from unified_backend.graph.files import MODEL, read_whole, write_whole
from unified_backend.graph.float8 import OPSET, float8, layers_in
from unified_backend.graph.nodes import at_opset
from unified_backend.graph.ranges import ranges
from unified_backend.settings import Settings
from unified_backend.tensors import Array
from unified_backend.verification import answered, verify

if TYPE_CHECKING:
    import onnx

__all__ = ["in_float8"]

logger = logging.getLogger(__name__)

_TRIED = 4  # batches that each layer is tried on


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
    label, path = canonical.label, canonical.path

    def opened(file: Path) -> Runner:
        return open_reference(label, file, settings)[0]

    learnt, checked = split(data)
    seen = ranges(path, learnt, folder, opened)

    def write(patterns: Sequence[str]) -> Written:
        made = float8(_model(path), seen, [*settings.exclude, *patterns])
        if not made.layers:
            why = next(iter(made.kept.values()), "it has no layer with weights")
            raise ConfigError(f"{label}: no layer can be quantised to fp8", why, "Leave the parameter `precision` out")
        write_whole(made.model, folder / MODEL)
        return Written(made.layers, made.kept)

    def alone(written: Written) -> list[dict[str, Any]]:
        return _alone(path, seen, written.kept, checked[:_TRIED], opened, folder)

    written = without_the_worst(label, write, lambda: judge(folder / MODEL), alone)
    return {"nodes": written.layers, "kept": written.kept, "held_out": learnt is not data}


def _alone(
    path: Path,
    seen: Mapping[str, float],
    excluded: Mapping[str, str],
    feeds: Sequence[Mapping[str, Array]],
    opened: Callable[[Path], Runner],
    folder: Path,
) -> list[dict[str, Any]]:
    """Each layer in FP8 alone: `layer`, and the least `cosine` of the outputs to those in FP32; the worst first."""
    model = _model(path)
    layers = [name for name in layers_in(model) if name not in excluded]
    logger.info("measuring layers=%d batches=%d", len(layers), len(feeds))
    full = opened(path)
    samples = [answered(full, one, None) for one in feeds]
    rows = []
    for layer in layers:
        others = [literal(name) for name in layers if name != layer]
        write_whole(float8(_model(path), seen, [*others, *map(literal, excluded)]).model, folder / MODEL)
        compared = verify(opened(folder / MODEL), samples)
        cosine = min((row.cosine for row in compared if row.cosine is not None), default=1.0)
        rows.append({"layer": layer, "cosine": cosine})
    return sorted(rows, key=lambda row: row["cosine"])


def _model(path: Path) -> onnx.ModelProto:
    return at_opset(read_whole(path), OPSET)
