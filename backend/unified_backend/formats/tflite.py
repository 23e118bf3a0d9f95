"""TensorFlow Lite files: one flatbuffer with graphs, weights and, in newer ones, signatures."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats.description import Description, as_asked, choice, telling
from unified_backend.formats.excerpts import excerpt
from unified_backend.formats.tflite_graph import Weights, operator_names, weights_of
from unified_backend.formats.wire import Bytes, mapped
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["TfLite"]

_MAGIC, _LEAST = b"TFL3", 16
# TensorType in the schema, by number; complex ones, INT4 and handles are none that Triton has.
_TRITON = {
    **{0: "FP32", 1: "FP16", 2: "INT32", 3: "UINT8", 4: "INT64", 5: "STRING", 6: "BOOL", 7: "INT16", 9: "INT8"},
    **{10: "FP64", 12: "UINT64", 15: "UINT32", 16: "UINT16", 18: "BF16"},
}
_DEFAULT_SIGNATURE = "serving_default"
_MOST_SCALES = 4  # of a channel-wise quantisation that are shown
_MOST_RANK = 64
# What the generated accessors raise where an offset leads nowhere.
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, OverflowError, MemoryError, AttributeError)


class TfLite:
    """The TensorFlow Lite format: one flatbuffer."""

    name = "tflite"

    def detect(self, path: Path) -> bool:
        """Whether the file bears the identifier of the schema."""
        with path.open("rb") as file:
            return path.stat().st_size >= _LEAST and file.read(8)[4:] == _MAGIC

    def companions(self, path: Path) -> list[str]:
        """None."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file says, for the signature that the settings choose.

        Raises:
            SourceError: it is damaged, or none or several of its signatures would do.
            ConfigError: a parameter names what the model has not got.
        """
        with mapped(path) as data:
            try:
                described = _described(_File(data), settings.signature, label)
            except _DAMAGE as error:
                raise SourceError(
                    f"{path.name} is a damaged TensorFlow Lite file",
                    f"an offset in it leads nowhere ({type(error).__name__}: {excerpt(error)})",
                    "Convert it again, or copy it again completely",
                ) from None
        return as_asked(described, settings, label)


class _File:
    """The tables of a file, through the generated accessors, which believe every number they read.

    So the lengths of vectors and texts are counted: together they are never more than a few times the file's size,
    unless a damaged one has its vectors lie on each other.
    """

    def __init__(self, data: Bytes) -> None:
        from tflite.Model import Model

        self._size = len(data)
        self._left = 4 * len(data) + 10_000
        self.model = Model.GetRootAs(data, 0)
        self.codes = list(self.rows(self.model, "OperatorCodes"))
        self.graphs = list(self.rows(self.model, "Subgraphs"))
        if not self.graphs:
            raise ValueError("it has no graph")
        self.tensors = [list(self.rows(graph, "Tensors")) for graph in self.graphs]

    def _spend(self, count: int) -> None:
        self._left -= count
        if not 0 <= count <= self._size or self._left < 0:
            raise ValueError("it states more entries than it can hold")

    def rows(self, table: Any, name: str) -> Iterator[Any]:
        """The entries of a vector: tables, or numbers."""
        count = getattr(table, f"{name}Length")()
        self._spend(4 * count if count else 0)
        entry: Callable[[int], Any] = getattr(table, name)
        return (entry(position) for position in range(count))

    def text(self, value: bytes | None) -> str:
        """A name, which damage may make as long as the file."""
        self._spend(len(value or b""))
        return (value or b"").decode("utf-8", "replace")

    def tensor(self, graph: int, index: int) -> Any:
        """A tensor of a graph by its number."""
        if not 0 <= index < len(self.tensors[graph]):
            raise IndexError(f"there is no tensor {index}")
        return self.tensors[graph][index]

    def shape(self, tensor: Any) -> tuple[int | None, ...] | None:
        """The shape with None for the dimensions that the signature of the shape leaves open."""
        signature = list(self.rows(tensor, "ShapeSignature"))
        sizes = signature or list(self.rows(tensor, "Shape"))
        if not sizes and not tensor.HasRank() and tensor.ShapeIsNone():
            return None
        if len(sizes) > _MOST_RANK:
            raise ValueError(f"a tensor has {len(sizes)} dimensions")
        return tuple(size if size >= 0 else None for size in sizes)


def _described(file: _File, wanted: str | None, label: str) -> Description:
    signatures = dict(_signatures(file))
    operators = operator_names(file)
    weights = weights_of(file, operators)
    facts = {
        "version": file.model.Version(),
        "description": file.text(file.model.Description()),
        "signatures": {name: _signature_facts(file, row) for name, row in signatures.items()},
        "graphs": len(file.graphs),
        "operators": operators.counts,
        "custom": operators.custom,
        "weights": _weights_facts(weights),
        "metadata": [file.text(row.Name()) for row in file.rows(file.model, "Metadata")],
    }
    with telling(facts):
        key = _chosen(signatures, wanted, label)
        if key is None:
            graph = 0
            sides = [[(None, index) for index in file.rows(file.graphs[0], side)] for side in ("Inputs", "Outputs")]
        else:
            graph, *sides = signatures[key]
        inputs, outputs = (_specs(file, graph, side, label) for side in sides)
    notes: list[str] = []
    if not inputs or not outputs:
        raise ValueError("its graph has no inputs or no outputs")
    inner = {
        spec.name: file.text(file.tensor(graph, index).Name())
        for side, specs in zip(sides, (inputs, outputs), strict=True)
        for (_, index), spec in zip(side, specs, strict=True)
    }
    if weights.dynamic_range:
        notes.append(
            "dynamic-range quantised: activations are quantised over the whole batch, so that answers depend on it"
        )
    if flex := [name for name in operators.counts if name.startswith("Flex")]:
        notes.append(f"operators of TensorFlow itself, which only its own library has: {', '.join(flex)}")
    facts = {"signature": key, **({} if key else _signature_facts(file, (graph, *sides))), **facts}
    job = {"signature": key, **({"graph": graph} if graph else {})} if key else {}
    return Description(inputs, outputs, inner, job, facts, tuple(notes))


def _signatures(file: _File) -> Iterator[tuple[str, tuple[int, list[Any], list[Any]]]]:
    """Key -> graph, and (name, tensor) of each input and output."""
    for row in file.rows(file.model, "SignatureDefs"):
        graph = row.SubgraphIndex()
        if not 0 <= graph < len(file.graphs):
            raise IndexError(f"there is no graph {graph}")
        sides = (
            [(file.text(entry.Name()), entry.TensorIndex()) for entry in file.rows(row, side)]
            for side in ("Inputs", "Outputs")
        )
        # A converter that was given no names leaves one signature without any.
        inputs, outputs = sides
        if inputs or outputs:
            yield file.text(row.SignatureKey()), (graph, inputs, outputs)


def _chosen(signatures: dict[str, Any], wanted: str | None, label: str) -> str | None:
    if wanted is None:
        if len(signatures) < 2:
            return next(iter(signatures), None)
        if _DEFAULT_SIGNATURE in signatures:
            return _DEFAULT_SIGNATURE
    elif wanted in signatures:
        return wanted
    if not signatures:
        raise ConfigError(
            f"{label}: the TensorFlow Lite file has no signatures",
            f'"{wanted}" was asked for',
            "Ask for none: remove --signature, or the parameter of that name",
        )
    why = "none was chosen" if wanted is None else f'"{wanted}" is none of them'
    kind = SourceError if wanted is None else ConfigError
    raise kind(
        f"{label}: the TensorFlow Lite file has "
        f"{'one signature' if len(signatures) == 1 else f'{len(signatures)} signatures'}",
        f"{', '.join(signatures)}; {why}",
        f"Choose one: {choice('signature', next(iter(signatures)))}",
    )


def _specs(file: _File, graph: int, side: Sequence[tuple[str | None, int]], label: str) -> tuple[TensorSpec, ...]:
    specs = []
    for name, index in side:
        tensor = file.tensor(graph, index)
        public = file.text(tensor.Name()) if name is None else name
        dtype = _TRITON.get(tensor.Type())
        if dtype is None:
            raise SourceError(
                f"{label}: the tensor {public} cannot be served",
                f"its type is {_type_name(tensor.Type())}, which Triton has not got",
                "Convert the model with inputs and outputs of usual types",
            )
        specs.append(TensorSpec(public or f"tensor_{index}", dtype, file.shape(tensor)))
    return tuple(specs)


def _signature_facts(file: _File, row: Sequence[Any]) -> dict[str, Any]:
    graph, *sides = row
    described = (
        {name or file.text(file.tensor(graph, index).Name()): _tensor_facts(file, graph, index) for name, index in side}
        for side in sides
    )
    return {"graph": graph, **dict(zip(("inputs", "outputs"), described, strict=True))}


def _tensor_facts(file: _File, graph: int, index: int) -> dict[str, Any]:
    tensor = file.tensor(graph, index)
    shape = file.shape(tensor)
    facts: dict[str, Any] = {
        "name": file.text(tensor.Name()),
        "dtype": _type_name(tensor.Type()),
        "shape": None if shape is None else [-1 if size is None else size for size in shape],
    }
    quantisation = tensor.Quantization()
    if quantisation is not None and quantisation.ScaleLength():
        scales, zeros = (list(file.rows(quantisation, part)) for part in ("Scale", "ZeroPoint"))
        facts["quantisation"] = {
            "scale": [float(scale) for scale in scales[:_MOST_SCALES]],
            "zero_point": [int(zero) for zero in zeros[:_MOST_SCALES]],
            **({"axis": quantisation.QuantizedDimension(), "channels": len(scales)} if len(scales) > 1 else {}),
        }
    return facts


def _weights_facts(weights: Weights) -> dict[str, Any]:
    return {
        "types": {_type_name(number): count for number, count in sorted(weights.types.items())},
        "per_channel": weights.per_channel,
        "sparse": weights.sparse,
        "kind": weights.kind,
    }


def _type_name(number: int) -> str:
    from tflite.TensorType import TensorType

    names = (name for name, value in vars(TensorType).items() if value == number and not name.startswith("_"))
    return next(names, f"type {number}")
