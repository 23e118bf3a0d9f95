"""A model in FP16 or BF16: cast, with what the type cannot hold left in FP32, and compared with FP32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_backend.engines import Canonical
from unified_backend.engines.reference import open_reference
from unified_backend.errors import ConfigError
from unified_backend.formats.onnx import coarsest_float
from unified_backend.graph.cast import Half, cast
from unified_backend.graph.files import MODEL, read_whole, write_whole
from unified_backend.graph.nodes import at_opset
from unified_backend.graph.ranges import ranges
from unified_backend.settings import Settings
from unified_backend.verification import Sample

if TYPE_CHECKING:
    import onnx

__all__ = ["JUDGE", "halved"]

JUDGE = "judge.onnx"  # what ONNX Runtime's CPU kernels run in place of a model that they have none for
_BFLOAT16_OPSET = 22  # the first whose convolutions, poolings and normalisations have bfloat16


def halved(
    canonical: Canonical,
    settings: Settings,
    half: Half,
    samples: Sequence[Sample],
    judge: Callable[[Path], None],
    folder: Path,
) -> dict[str, Any]:
    """Write the model in a half type; facts of it.

    What is judged is the same graph in FP32 with every value rounded to the half type. ONNX Runtime's CPU has few half
    kernels: it computes in FP32 between casts and removes those in a row, so that a value which the type cannot hold
    goes through it unharmed, and does not on a GPU.

    Args:
        samples: their values show what the type cannot hold.
        judge: compares a model with FP32.
        folder: gets `model.onnx`, unless the source is in the half type already, and `judge.onnx` where ONNX Runtime's
            CPU cannot load that.

    Raises:
        ConfigError: no node can be lowered.
        VerificationError: it answers otherwise than in FP32.
    """
    label, path = canonical.label, canonical.path

    def observed(file: Path) -> Any:
        return open_reference(label, file, settings)[0]

    seen = ranges(path, [sample.feeds for sample in samples], folder, observed) if half == "fp16" else {}
    made = cast(_model(path, half), half, settings.exclude, seen)
    if not made.lowered:
        specs = (*canonical.signature.inputs, *canonical.signature.outputs)
        if half.upper() in (coarsest_float(path), *(spec.dtype for spec in specs)):
            return {"already": True, "nodes": 0, "kept": {}}
        why = "; ".join(list(dict.fromkeys(made.kept.values()))[:3]) or "it computes with no FP32 numbers"
        raise ConfigError(f"{label}: no node can be lowered to {half}", why, "Leave the parameter `precision` out")
    write_whole(made.model, folder / MODEL)
    emulated = cast(_model(path, half), half, settings.exclude, seen, emulated=True)
    write_whole(emulated.model, folder / JUDGE)
    judge(folder / JUDGE)
    if half == "fp16":
        for file in folder.glob(f"{JUDGE}*"):
            file.unlink()
    return {"nodes": made.lowered, "kept": dict(made.kept)}


def _model(path: Path, half: Half) -> onnx.ModelProto:
    model = read_whole(path)
    return at_opset(model, _BFLOAT16_OPSET) if half == "bf16" else model
