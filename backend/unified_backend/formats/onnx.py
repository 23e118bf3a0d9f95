"""ONNX files: recognised by the structure of the protobuf message, whatever the file is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description
from unified_backend.formats.excerpts import excerpt
from unified_backend.formats.wire import fields, mapped
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec, data_type

if TYPE_CHECKING:
    import onnx

__all__ = ["Onnx", "coarsest_float", "files_as", "read_model"]

# Field numbers of ModelProto in onnx.proto: name and wire type (0 varint, 2 length-delimited).
_MODEL_FIELDS = {
    1: 0,  # ir_version
    2: 2,  # producer_name
    3: 2,  # producer_version
    4: 2,  # domain
    5: 0,  # model_version
    6: 2,  # doc_string
    7: 2,  # graph
    8: 2,  # opset_import
    14: 2,  # metadata_props
    20: 2,  # training_info
    25: 2,  # functions
    26: 2,  # configuration
}
_GRAPH, _OPSET_IMPORT, _IR_VERSION = 7, 8, 1


class Onnx:
    """The ONNX format: one protobuf file, and the external data files it names."""

    name = "onnx"

    def detect(self, path: Path) -> bool:
        """Whether the file's top-level fields are those of an ONNX ModelProto with a graph.

        Raises:
            SourceError: it begins as one and ends too early.
        """
        if path.stat().st_size < 8:
            return False
        seen: set[int] = set()
        with mapped(path) as data:
            for field, wire_type, _, end in fields(data):
                if _MODEL_FIELDS.get(field) != wire_type:
                    return False
                seen.add(field)
                if end > len(data):
                    # Text and random bytes get here by chance; a model names its IR version before its graph.
                    if _IR_VERSION not in seen or field != _GRAPH:
                        return False
                    raise SourceError(
                        f"{path.name} is a truncated ONNX file",
                        f"its graph needs {end} bytes and the file ends after {len(data)}",
                        "Copy it again, completely",
                    )
        return _GRAPH in seen and bool(seen & {_IR_VERSION, _OPSET_IMPORT})

    def companions(self, path: Path) -> list[str]:
        """The distinct external data locations in the model's tensors, in order of first use.

        Raises:
            SourceError: the protobuf message is damaged.
        """
        from onnx.external_data_helper import uses_external_data

        model = read_model(path)
        locations: dict[str, None] = {}
        for tensor in (tensor for holder in (model.graph, *model.functions) for tensor in _tensors(holder)):
            if uses_external_data(tensor):
                locations.update(
                    (_text(entry.value), None) for entry in tensor.external_data if entry.key == "location"
                )
        return list(locations)

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file says of itself; the signature that is served is ONNX Runtime's reading of it.

        Raises:
            SourceError: the protobuf message is damaged.
        """
        model = read_model(path)
        constants = {tensor.name for tensor in model.graph.initializer}
        facts = {
            "ir_version": model.ir_version,
            "opsets": {_text(entry.domain) or "ai.onnx": entry.version for entry in model.opset_import},
            "producer": f"{_text(model.producer_name)} {_text(model.producer_version)}".strip(),
            "operators": dict(Counter(_text(node.op_type) for node in model.graph.node).most_common()),
        }
        inputs = tuple(_tensor_spec(value) for value in model.graph.input if value.name not in constants)
        return Description(inputs, tuple(_tensor_spec(value) for value in model.graph.output), facts=facts)


def coarsest_float(path: Path) -> str:
    """The coarsest type of floating point that a model's weights, constants and casts have, FP32 at the finest.

    Raises:
        SourceError: the protobuf message is damaged.
    """
    model = read_model(path)
    holders = (model.graph, *model.functions)
    types = {tensor.data_type for holder in holders for tensor in _tensors(holder)}
    types |= {
        attribute.i
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    found = {row.triton for number in types if (row := data_type(number))}
    return next((name for name in ("BF16", "FP16") if name in found), "FP32")


def files_as(model: Path, name: str) -> dict[str, Path]:
    """The files of a model that is copied under another name: name in the copy's folder -> file.

    External data stays under the name that the model has for it.

    Raises:
        SourceError: the model's data has the name that the model is to have.
    """
    companions = Onnx().companions(model)
    if name in companions:
        raise SourceError(
            f"{model.name} has its external data in {name}",
            "the model itself is to be written under that name",
            "Export it again with another name for its data",
        )
    return {name: model, **{companion: model.parent / companion for companion in companions}}


def read_model(path: Path) -> onnx.ModelProto:
    """The model without its external data.

    Raises:
        SourceError: the protobuf message is damaged.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise SourceError(
            f"{path.name} is a damaged ONNX file",
            f"its protobuf message does not parse ({excerpt(error)})",
            "Export it again",
        ) from None


def _tensors(holder: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph or function, and of the graphs in it.

    Not onnx's own walk, which leaves out sparse tensors: ONNX Runtime reads theirs from other files, too.
    """
    sparse = [*getattr(holder, "sparse_initializer", ())]
    yield from getattr(holder, "initializer", ())
    for node in holder.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            sparse.extend(attribute.sparse_tensors)
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _tensors(graph)
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, type and shape as the graph declares them; what Triton has no type for is a string."""
    tensor = value.type.tensor_type
    row = data_type(tensor.elem_type)
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            size.dim_value if size.HasField("dim_value") else _text(size.dim_param) or None for size in tensor.shape.dim
        )
    return TensorSpec(_text(value.name), row.triton if row else "STRING", shape)


def _text(value: str | bytes) -> str:
    """A string of a message; protobuf gives damaged ones as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
