"""What is done to every exported model in its toolchain: repairs, public names, the checker, onnxsim."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.conversion.interface import publish
from unified_backend.conversion.repair import repair, simplified, unknown_operators
from unified_backend.errors import ConversionError
from unified_backend.tensors import TensorSpec
from unified_backend.toolchains.workers.messages import first_line

if TYPE_CHECKING:
    import onnx

__all__ = ["LARGE", "MODEL", "finish", "save", "simplify"]

MODEL, DATA = "model.onnx", "model.onnx.data"
_LARGE_TENSOR = 256  # values; smaller ones stay in the model
# Bytes of weights from which they lie in a file beside the model, long before one protobuf message would not hold them
# (2^31): what handles the graph then copies less.
LARGE = 2**27


def finish(
    path: Path,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    ranks: Mapping[str, int],
    domains: Collection[str] = (),
) -> list[str]:
    """Repair a model that an exporter wrote, give it its public names, and write it in its place.

    Args:
        inputs: name in the exporter's graph -> what it is to the public, in order.
        outputs: likewise.
        ranks: of the outputs, as seen in a run.
        domains: of operators that the user knows.

    Returns:
        what was done, a line each.

    Raises:
        ConversionError: it has operators that ONNX does not.
    """
    import onnx

    model = onnx.load(path)
    repairs = repair(model)
    if unknown := unknown_operators(model, domains):
        names = ", ".join(f"{operator} ({count})" for operator, count in sorted(unknown.items()))
        raise ConversionError(f"{names}: no ONNX operators", "the exporter wrote them all the same", "Try another")
    publish(model, inputs, outputs, ranks)
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGE
    for file in path.parent.iterdir():
        file.unlink()
    save(model, path.parent, {} if external else None)
    del model  # a message keeps the memory of its values until it is gone
    return [*repairs, *simplify(path.parent, external)]


def save(model: onnx.ModelProto, folder: Path, data: Mapping[str, bytes] | None = None) -> None:
    """Write the model and have it checked.

    Args:
        data: given, large tensors are written into a file beside the model: the values that are here under a tensor's
            external location, as tf2onnx hands them over, and those in the model.
    """
    import onnx
    from onnx.external_data_helper import set_external_data

    path = folder / MODEL
    if data is not None:
        with (folder / DATA).open("wb") as file:
            for tensor in _large(model, data):
                values = data[tensor.external_data[0].value] if tensor.external_data else _bytes(tensor)
                offset = file.tell()
                file.write(values)
                tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
                tensor.raw_data = b""
                set_external_data(tensor, DATA, offset=offset, length=len(values))
                tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def simplify(folder: Path, external: bool) -> list[str]:
    """Write the model simplified in place of what it was; what was done, or why it stays as it was.

    Args:
        external: its large tensors stay in a file beside it.
    """
    import onnx

    path = folder / MODEL
    before = len(onnx.load(path, load_external_data=False).graph.node)
    trial = folder / "simplified"
    trial.mkdir()
    try:
        model = simplified(path)
        save(model, trial, {} if external else None)
        onnx.checker.check_model(str(trial / path.name), full_check=True)  # with the types and shapes of all tensors
    except Exception as error:  # noqa: BLE001 - onnxsim raises whatever its own code trips over
        return [f"not simplified: {first_line(error)}"]
    if len(model.graph.node) >= before:
        return []
    for file in trial.iterdir():
        file.replace(folder / file.name)
    return [f"simplified: {before} nodes before, {len(model.graph.node)} after"]


def _large(model: onnx.ModelProto, data: Mapping[str, bytes]) -> list[onnx.TensorProto]:
    """Tensors whose values are in `data`, and initializers that are worth a place outside the model."""
    from onnx import TensorProto
    from onnx.external_data_helper import _get_all_tensors

    handed = [tensor for tensor in _get_all_tensors(model) if tensor.external_data]
    inside = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    return [
        *(tensor for tensor in handed if tensor.external_data[0].value in data),
        *(t for t in inside if t.data_type != TensorProto.STRING and math.prod(t.dims) >= _LARGE_TENSOR),
    ]


def _bytes(tensor: onnx.TensorProto) -> bytes:
    from onnx import numpy_helper

    return tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
