"""OpenVINO's own models (IR): an XML file with the graph, and a file of weights beside it."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, as_asked, telling
from unified_backend.formats.excerpts import excerpt
from unified_backend.formats.openvino_xml import Const, Layer, Network, Port, network_of
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["OpenVinoIr"]

_HEAD = 64 * 1024  # bytes that are searched for the root
_ROOT = re.compile(
    rb"""\A(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*|<!--.*?-->\s*)*<net\s[^>]*?version\s*=\s*["']\d+["']""", re.DOTALL
)
_VERSIONS = ("10", "11")
_AGAIN = "Copy both files again, completely, or save the model again with openvino.save_model"
# Element types, as <data> and, in capitals, ports spell them -> Triton's; bfloat16 and strings are left out, see
# engines.openvino. Bits of each, for the sizes of constants; those with fewer than 8 are packed in ways of their own.
_TYPES = {
    **{"f32": "FP32", "f16": "FP16", "f64": "FP64", "fp32": "FP32", "fp16": "FP16", "fp64": "FP64"},
    **{"boolean": "BOOL", "bool": "BOOL", "i8": "INT8", "i16": "INT16", "i32": "INT32", "i64": "INT64"},
    **{"u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "u64": "UINT64"},
}
_BITS = {
    **{"f64": 64, "i64": 64, "u64": 64, "f32": 32, "i32": 32, "u32": 32, "f16": 16, "bf16": 16, "i16": 16, "u16": 16},
    **{"i8": 8, "u8": 8, "boolean": 8},
}


class OpenVinoIr:
    """The OpenVINO format: `.xml`, and `.bin` where it has constants."""

    name = "openvino"

    def detect(self, path: Path) -> bool:
        """Whether the root of the XML is a network with layers."""
        with path.open("rb") as file:
            head = file.read(_HEAD)
        return _ROOT.match(head) is not None and b"<layers" in head

    def companions(self, path: Path) -> list[str]:
        """The file of weights: the model's name with `.bin`."""
        weights = path.with_suffix(".bin")
        return [weights.name] if weights.is_file() or _network(path).constants else []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file says.

        Raises:
            SourceError: one of its two files is damaged or missing, or it has a tensor that cannot be served.
            ConfigError: a parameter names what the model has not got.
        """
        network = _network(path)
        _require_weights(path, network.constants)
        facts = _facts(network)
        with telling(facts):
            if network.version not in _VERSIONS:
                raise SourceError(
                    f"{label}: the OpenVINO model is of IR version {excerpt(network.version)}",
                    f"OpenVINO reads versions {' and '.join(_VERSIONS)}",
                    "Convert the original model again, with openvino.convert_model of a present version",
                )
            inputs = tuple(_parameter(layer, label) for layer in _of_kind(network, "Parameter"))
            outputs = tuple(_result(network, layer, label) for layer in _of_kind(network, "Result"))
            names = [spec.name for spec in (*inputs, *outputs)]
            if not inputs or not outputs or "" in names:
                raise SourceError(
                    f"{path.name} is a damaged OpenVINO model",
                    f"it has {len(inputs)} inputs and {len(outputs)} outputs"
                    + (", and one has no name" if "" in names else ""),
                    _AGAIN,
                )
        return as_asked(Description(inputs, outputs, facts=facts), settings, label)


def _network(path: Path) -> Network:
    try:
        return network_of(path)
    except ValueError as error:
        raise SourceError(f"{path.name} is a damaged OpenVINO model", excerpt(error), _AGAIN) from None


def _of_kind(network: Network, kind: str) -> list[Layer]:
    return [layer for layer in network.layers.values() if layer.kind == kind]


def _parameter(layer: Layer, label: str) -> TensorSpec:
    port = next(iter(layer.outputs.values()), Port("", ""))
    name = _first(port.names) or layer.name
    dtype = _dtype(layer.data.get("element_type") or port.precision, f"input {name}", label)
    return TensorSpec(name, dtype, _stated_shape(layer.data.get("shape", "...")))


def _result(network: Network, layer: Layer, label: str) -> TensorSpec:
    """An output: the tensor that it is the result of has its names; before version 11, that of the layer it is from."""
    number, port = next(iter(layer.inputs.items()), ("0", Port("", "")))
    begin, begin_port = network.sources.get((layer.id, number), ("", ""))
    source = network.layers.get(begin)
    tensor = source.outputs.get(begin_port) if source else None
    name = _first(layer.output_names) or (_first(tensor.names) if tensor else "")
    if not name and source and network.version == "10":
        several = len(source.outputs) > 1
        name = f"{source.name}.{list(source.outputs).index(begin_port)}" if several and tensor else source.name
    precision = (tensor.precision if tensor else "") or port.precision
    # A scalar and an unknown rank are both spelt without dimensions.
    shape = tuple(size if size >= 0 else None for size in port.dims) or None
    return TensorSpec(name or layer.name, _dtype(precision, f"output {name or layer.name}", label), shape)


def _dtype(spelt: str, what: str, label: str) -> str:
    dtype = _TYPES.get(spelt.lower())
    if dtype is None:
        raise SourceError(
            f"{label}: the {what} cannot be served",
            f'its element type is "{excerpt(spelt)}"',
            "Save the model again with inputs and outputs of usual types (openvino.preprocess.PrePostProcessor)",
        )
    return dtype


def _stated_shape(text: str) -> tuple[int | None, ...] | None:
    """`?,3,1..8,224`; `...` for an unknown rank, nothing for a scalar."""
    if text.strip() == "...":
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(int(part) if part.isdecimal() and len(part) < 20 else None for part in parts)


def _first(names: str) -> str:
    """The first in alphabetical order of a tensor's names, which have commas between them and `\\,` inside them."""
    return min((name.replace("\\,", ",") for name in re.split(r"(?<!\\),", names) if name), default="")


def _require_weights(path: Path, constants: list[Const]) -> None:
    """Compare what the constants state with each other and with the file that they lie in.

    Raises:
        SourceError: it is missing or too short, or a constant has not the size of its shape.
    """
    for const in constants:
        shape, bits = _stated_shape(const.shape) or (), _BITS.get(const.element_type)
        if bits and None not in shape and const.size * 8 != bits * math.prod(size or 0 for size in shape):
            raise SourceError(
                f"{path.name} is a damaged OpenVINO model",
                f"the constant {excerpt(const.name)} is {const.element_type} [{excerpt(const.shape)}], and "
                f"{const.size} bytes are stated",
                _AGAIN,
            )
    end = max((const.offset + const.size for const in constants), default=0)
    weights = path.with_suffix(".bin")
    there = weights.stat().st_size if weights.is_file() else None
    if end and (there is None or there < end):
        raise SourceError(
            f"{weights.name} is {'missing' if there is None else 'cut short'}",
            f"{path.name} places weights up to byte {end} in it"
            + ("" if there is None else f", and it ends after {there}"),
            _AGAIN,
        )


def _facts(network: Network) -> dict[str, object]:
    return {
        "IR version": network.version,
        "name": network.name,
        "made by": network.made_by,
        "operators": dict(network.operators.most_common()),
        "constants": dict(Counter(const.element_type for const in network.constants).most_common()),
    }
