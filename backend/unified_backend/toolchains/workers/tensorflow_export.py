"""Exports a frozen source with tf2onnx, and takes the result only if every operator is one that ONNX knows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_backend.conversion.interface import publish
from unified_backend.conversion.repair import repair, unknown_operators
from unified_backend.graph.saving import MODEL, save
from unified_backend.tensors import Signature
from unified_backend.toolchains.workers.finishing import simplify
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.tensorflow_graph import Ends, bind
from unified_backend.toolchains.workers.tensorflow_sources import Frozen

if TYPE_CHECKING:
    import onnx

__all__ = ["Exported", "export"]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What became of an export: the file it wrote, or why there is none."""

    model: str | None
    failure: str = ""
    repairs: Sequence[str] = ()


def export(
    frozen: Frozen,
    signature: Signature,
    ranks: Mapping[str, int],
    options: Mapping[str, Any],
    opset: int,
    folder: Path,
    tell: Any,
) -> Exported:
    """Write `model.onnx` into the folder, with the public names, if the source can be written as ONNX.

    Args:
        signature: public names, types and shapes.
        ranks: of the outputs, as seen in a run.
        options: of `checked_ends`, without `shape_override`, and `large_model` in any case.
    """
    ends = bind(frozen, signature, options["large_model"])
    said = _Said()
    logging.getLogger("tf2onnx").addHandler(said)
    try:
        model, data = _converted(frozen, ends, signature, options, opset)
    except Exception as error:  # noqa: BLE001 - a converter raises whatever its own code trips over
        return Exported(None, f"tf2onnx: {type(error).__name__}: {first_line(error)}")
    tell("repairing")
    repairs = repair(model)
    domains = {entry.domain for entry in options.get("extra_opset") or ()}
    domains |= set((options.get("custom_ops") or {}).values())
    if unknown := unknown_operators(model, domains):
        names = ", ".join(f"{operator} ({count})" for operator, count in sorted(unknown.items()))
        reason = f"; tf2onnx: {said.lines[0]}" if said.lines else ""
        return Exported(None, f"{names}: tf2onnx writes no ONNX operator for it{reason}", repairs)
    publish(
        model,
        {ends.inputs[spec.name]: spec for spec in signature.inputs},
        {ends.outputs[spec.name]: spec for spec in signature.outputs},
        ranks,
    )
    try:
        save(model, folder, data or None)
    except Exception as error:  # noqa: BLE001 - onnx's checker raises several types, none of which says more
        (folder / MODEL).unlink(missing_ok=True)
        reason = f"; tf2onnx: {said.lines[0]}" if said.lines else ""
        return Exported(None, f"what tf2onnx wrote is no valid ONNX: {first_line(error)}{reason}", repairs)
    tell("simplifying")
    return Exported(MODEL, repairs=[*repairs, *simplify(folder, bool(data))])


def _converted(
    frozen: Frozen, ends: Ends, signature: Signature, options: Mapping[str, Any], opset: int
) -> tuple[onnx.ModelProto, Mapping[str, bytes]]:
    import tensorflow as tf
    from tf2onnx.convert import _convert_common

    _keep_constants_where_they_are()
    sides = {"inputs_as_nchw": ends.inputs, "outputs_as_nchw": ends.outputs}
    named = {option: [inner[name] for name in options[option]] for option, inner in sides.items() if option in options}
    with tf.device("/cpu:0"):
        model, storage = _convert_common(
            ends.graph,
            **{
                **options,
                **named,
                "name": "the source",
                "continue_on_error": True,  # else it stops at the first operator; all are wanted in the message
                "opset": opset,
                "input_names": None if frozen.lite else list(ends.inputs.values()),
                "output_names": None if frozen.lite else list(ends.outputs.values()),
                "initialized_tables": dict(frozen.tables),
                "tflite_path": None if frozen.lite is None else str(frozen.lite),
            },
        )
    return model, storage.name_to_tensor_data if storage else {}


def _keep_constants_where_they_are() -> None:
    """Keep tf2onnx from copying every weight after each of its optimisers.

    It writes each node's attributes into its message again, which nobody reads for a constant. Protobuf gives the
    memory of what was there before back only with the node: 0.8 GB of weights took more than 20 GB.
    """
    from tf2onnx.graph import Node

    update = Node.update_proto

    def update_but_constants(self: Any, *arguments: Any, **options: Any) -> None:
        if not self.is_const():
            update(self, *arguments, **options)

    Node.update_proto = update_but_constants


class _Said(logging.Handler):
    """Keeps what tf2onnx logs as an error: with `continue_on_error` it raises none."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split())[:300])
