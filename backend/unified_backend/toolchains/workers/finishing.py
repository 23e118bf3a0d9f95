"""What is done to every exported model in its toolchain: repairs, public names, the checker, onnxsim."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.conversion.interface import publish
from unified_backend.conversion.repair import repair, simplified, unknown_operators
from unified_backend.errors import ConversionError
from unified_backend.tensors import Signature
from unified_backend.toolchains.workers.messages import first_line

if TYPE_CHECKING:
    import onnx

__all__ = ["MODEL", "finish", "save", "simplify"]

MODEL, DATA = "model.onnx", "model.onnx.data"
_LARGE_TENSOR = 256  # values; smaller ones stay in the model
_LARGE_MODEL = 2**30  # bytes of weights from which they lie in a file beside it; a message holds 2^31


def finish(path: Path, signature: Signature, ranks: Mapping[str, int], domains: Collection[str] = ()) -> list[str]:
    """Repair a model that an exporter wrote under the public names, and write it in its place.

    Args:
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
    publish(
        model,
        {spec.name: spec for spec in signature.inputs},
        {spec.name: spec for spec in signature.outputs},
        ranks,
    )
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGE_MODEL
    for file in path.parent.iterdir():
        file.unlink()
    save(model, taken_out(model) if external else {}, path.parent)
    return [*repairs, *simplify(path.parent, external)]


def save(model: onnx.ModelProto, data: Mapping[str, bytes], folder: Path) -> None:
    """Write the model, its large tensors into one file beside it if it was exported so, and have it checked."""
    import onnx
    from onnx.external_data_helper import set_external_data

    path = folder / MODEL
    if data:
        with (folder / DATA).open("wb") as file:
            for tensor in _external(model, data):
                values = data[tensor.external_data[0].value]
                offset = file.tell()
                file.write(values)
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
        save(model, taken_out(model) if external else {}, trial)
        onnx.checker.check_model(str(trial / path.name), full_check=True)  # with the types and shapes of all tensors
    except Exception as error:  # noqa: BLE001 - onnxsim raises whatever its own code trips over
        return [f"not simplified: {first_line(error)}"]
    if len(model.graph.node) >= before:
        return []
    for file in trial.iterdir():
        file.replace(folder / file.name)
    return [f"simplified: {before} nodes before, {len(model.graph.node)} after"]


def taken_out(model: onnx.ModelProto) -> dict[str, bytes]:
    """Take the large tensors' values out of the model: name -> bytes, as tf2onnx hands them over."""
    from onnx import TensorProto, numpy_helper
    from onnx.external_data_helper import set_external_data

    data = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.STRING or math.prod(tensor.dims) < _LARGE_TENSOR:
            continue
        data[tensor.name] = numpy_helper.to_array(tensor).tobytes()
        tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=b""))
        set_external_data(tensor, tensor.name)
    return data


def _external(model: onnx.ModelProto, data: Mapping[str, bytes]) -> list[onnx.TensorProto]:
    from onnx.external_data_helper import _get_all_tensors

    found = [tensor for tensor in _get_all_tensors(model) if tensor.external_data]
    return [tensor for tensor in found if tensor.external_data[0].value in data]
