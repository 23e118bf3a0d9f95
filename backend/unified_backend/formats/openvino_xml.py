"""The XML half of an OpenVINO model, read in one pass that keeps layers and forgets everything else.

Expat reads it as it comes, and a document type, which is where entities are declared, ends it: no IR has one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from xml.parsers import expat

__all__ = ["Const", "Layer", "Network", "Port", "network_of"]

_MOST_BYTES = 256 * 2**20  # 60 million layers' worth; the XML of a language model has 10 MB
_MOST_DEPTH = 200
_CHUNK = 1 << 16


@dataclasses.dataclass
class Port:
    """An input or output of a layer: element type as the file spells it, dimensions (-1 is open), tensor's names."""

    precision: str
    names: str
    dims: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Layer:
    """A Parameter or Result of the network itself, or any other layer; `data` are the attributes of its own."""

    id: str
    name: str
    kind: str
    output_names: str
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    inputs: dict[str, Port] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Port] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Const:
    """A constant, which lies in the other half: element type and shape as the file spells them, where, and how long."""

    name: str
    element_type: str
    shape: str
    offset: int
    size: int


@dataclasses.dataclass
class Network:
    """What a file says.

    Attributes:
        layers: of the network itself, by their numbers; those in bodies of loops are only counted.
        sources: (number, port) of a layer's input -> (number, port) of the output that it comes from.
        constants: of bodies too.
        operators: types and counts, of bodies too.
    """

    name: str = ""
    version: str = ""
    made_by: str = ""
    layers: dict[str, Layer] = dataclasses.field(default_factory=dict)
    sources: dict[tuple[str, str], tuple[str, str]] = dataclasses.field(default_factory=dict)
    constants: list[Const] = dataclasses.field(default_factory=list)
    operators: Counter[str] = dataclasses.field(default_factory=Counter)


def network_of(path: Path) -> Network:
    """What the file says.

    Raises:
        ValueError: it is no XML, cut short, larger than any model's, or none of an OpenVINO model.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB, which no model's description is")
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                parser.Parse(chunk, False)
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no whole XML: {expat.ErrorString(error.code)} in line {error.lineno}") from None
    return reader.network


class _Reader:
    """Takes what expat finds."""

    def __init__(self) -> None:
        self.network = Network()
        self._open: list[str] = []
        self._layers: list[Layer] = []
        self._port: Port | None = None
        self._dim: list[str] | None = None

    def refuse(self, *_: object) -> None:
        """A document type or an entity."""
        raise ValueError("it declares a document type, which no model does")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if not self._open and name != "net":
            raise ValueError(f"its root is <{name}>, and that of a model is <net>")
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        if len(self._open) > _MOST_DEPTH:
            raise ValueError(f"its elements lie in each other {_MOST_DEPTH} deep")
        network = self.network
        if not parent:
            network.name, network.version = attributes.get("name", ""), attributes.get("version", "")
        elif name == "layer" and parent == "layers":
            number, own, kind, names = (attributes.get(key, "") for key in ("id", "name", "type", "output_names"))
            layer = Layer(number, own, kind, names)
            self._layers.append(layer)
            network.operators[layer.kind] += 1
            if self._open == ["net", "layers", "layer"]:
                network.layers[layer.id] = layer
        elif name == "data" and parent == "layer":
            self._layers[-1].data = attributes
            if self._layers[-1].kind == "Const":
                network.constants.append(_constant(self._layers[-1].name, attributes))
        elif name == "port" and parent in ("input", "output") and self._layers:
            self._port = Port(attributes.get("precision", ""), attributes.get("names", ""))
            side = self._layers[-1].inputs if parent == "input" else self._layers[-1].outputs
            side[attributes.get("id", "")] = self._port
        elif name == "dim" and parent == "port":
            self._dim = []
        elif name == "edge" and self._open == ["net", "edges", "edge"]:
            end, begin = (
                tuple(attributes.get(f"{way}-{what}", "") for what in ("layer", "port")) for way in ("to", "from")
            )
            network.sources[(end[0], end[1])] = (begin[0], begin[1])
        elif attributes.get("name") == "OpenVINO Runtime" or name == "Runtime_version":
            network.made_by = attributes.get("value", "")

    def end(self, name: str) -> None:
        """An element ends."""
        self._open.pop()
        if name == "layer" and self._layers and self._open and self._open[-1] == "layers":
            self._layers.pop()
        elif name == "dim" and self._port is not None and self._dim is not None:
            self._port.dims.append(_whole("".join(self._dim)))
            self._dim = None

    def text(self, text: str) -> None:
        """Characters, of which only a dimension's matter."""
        if self._dim is not None:
            self._dim.append(text)


def _constant(name: str, data: dict[str, str]) -> Const:
    offset, size = (_whole(data.get(key, "0")) for key in ("offset", "size"))
    if offset < 0 or size < 0:
        raise ValueError(f"the constant {name} lies at byte {offset} and has {size}")
    return Const(name, data.get("element_type", ""), data.get("shape", ""), offset, size)


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f'"{text[:20]}..." is no number of it')
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'"{text}" is no number') from None
