"""TensorFlow Lite: one flatbuffer, read with its public schema and without its interpreter."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, as_asked
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["TfLite"]

_IDENTIFIER = b"TFL3"  # bytes 4 to 8: file_identifier of schema.fbs
_SMALLEST = 16  # bytes that a root table and its vtable take
# TensorType of schema.fbs -> Triton's name; the others (complex, resource, variant, 4 bits) it has not got.
_TRITON = {
    **{0: "FP32", 1: "FP16", 2: "INT32", 3: "UINT8", 4: "INT64", 5: "STRING", 6: "BOOL", 7: "INT16", 9: "INT8"},
    **{10: "FP64", 12: "UINT64", 15: "UINT32", 16: "UINT16", 18: "BF16"},
}
_FLOAT32, _INT8 = 0, 9
_DEFAULT_SIGNATURE = "serving_default"
# What reading past the end, or through a wrong offset, raises in the flatbuffers package.
_DAMAGE = (struct.error, IndexError, TypeError, ValueError, OverflowError, MemoryError, AttributeError, RecursionError)


class TfLite:
    """The TensorFlow Lite format: one file."""

    name = "tflite"

    def detect(self, path: Path) -> bool:
        """Whether the file has the identifier of a TensorFlow Lite model."""
        with path.open("rb") as file:
            return file.read(8)[4:] == _IDENTIFIER and path.stat().st_size >= _SMALLEST

    def companions(self, path: Path) -> list[str]:
        """None: the weights are in the file."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file says, for the signature that the settings choose.

        Raises:
            SourceError: it is damaged, or has several signatures and none was chosen.
            ConfigError: a parameter names what the model has not got.
        """
        content = path.read_bytes()
        try:
            described = _described(_Model(content), settings, label)
        except _DAMAGE as error:
            raise SourceError(
                f"{path.name} is a damaged TensorFlow Lite file",
                f"its flatbuffer does not hold together ({error or type(error).__name__})",
                "Copy it again, completely",
            ) from None
        return as_asked(described, settings, label)


class _Model:
    """The tables of a model file, every vector checked against the file's size before it is walked."""

    def __init__(self, content: bytes) -> None:
        import tflite

        self._size = len(content)
        self.root = tflite.Model.GetRootAs(content, 0)
        self.graphs = self.rows(self.root.SubgraphsLength(), self.root.Subgraphs)
        if not self.graphs:
            raise ValueError("it has no graph")

    def rows(self, length: int, get: Callable[[int], Any]) -> list[Any]:
        """The elements of a vector; a length beyond what the file could hold is damage."""
        if not 0 <= length <= self._size:
            raise ValueError(f"a vector of {length} elements in a file of {self._size} bytes")
        return [get(index) for index in range(length)]

    def tensors(self, graph: Any) -> list[Any]:
        """The tensors of a graph."""
        return self.rows(graph.TensorsLength(), graph.Tensors)

    def numbers(self, table: Any, field: str) -> list[int]:
        """A vector of numbers."""
        return [int(value) for value in self.rows(getattr(table, f"{field}Length")(), getattr(table, field))]

    def operators(self) -> list[str]:
        """Name of each operator code: custom operators by their own."""
        import tflite

        names = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
        found = []
        for code in self.rows(self.root.OperatorCodesLength(), self.root.OperatorCodes):
            # Codes up to 127 are in the older, one-byte field.
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = code.CustomCode()
            found.append(custom.decode("utf-8", "replace") if custom else names.get(number, f"operator {number}"))
        return found


def _described(model: _Model, settings: Settings, label: str) -> Description:
    signatures = _signatures(model)
    key = _chosen(signatures, settings.signature, label)
    if key is None:
        number = 0
        ends = {
            side: [(_name(tensor), index) for index, tensor in _ends(model, model.graphs[0], side)]
            for side in ("Inputs", "Outputs")
        }
    else:
        number, ends = signatures[key]
    tensors = model.tensors(model.graphs[number])
    inputs, outputs = (
        tuple(_spec(model, name, tensors[index], label) for name, index in ends[side]) for side in ("Inputs", "Outputs")
    )
    inner = {name: _name(tensors[index]) for side in ends.values() for name, index in side}
    counts = _counts(model)
    facts = {
        "signature": key,
        "signatures": {
            name: {side.lower(): [row[0] for row in rows] for side, rows in sides.items()}
            for name, (_, sides) in signatures.items()
        },
        "version": model.root.Version(),
        "description": (model.root.Description() or b"").decode("utf-8", "replace"),
        "graphs": len(model.graphs),
        "operators": dict(sorted(counts.items())),
        "quantisation": {name: _quantisation(model, tensors[index]) for rows in ends.values() for name, index in rows},
        "sparse_tensors": sum(tensor.Sparsity() is not None for tensor in tensors),
    }
    notes = []
    if _dynamic_range(model):
        notes.append(
            "dynamic-range quantised: activations are quantised over the batch, so answers depend on it a little"
        )
    return Description(inputs, outputs, inner, {"signature": key} if key else {}, facts, tuple(notes))


def _signatures(model: _Model) -> dict[str, tuple[int, dict[str, list[tuple[str, int]]]]]:
    """Key -> its graph's number, and name and tensor index of its inputs and outputs."""
    found = {}
    for row in model.rows(model.root.SignatureDefsLength(), model.root.SignatureDefs):
        sides = {
            side: [
                (entry.Name().decode("utf-8", "replace"), entry.TensorIndex())
                for entry in model.rows(getattr(row, f"{side}Length")(), getattr(row, side))
            ]
            for side in ("Inputs", "Outputs")
        }
        found[(row.SignatureKey() or b"").decode("utf-8", "replace")] = (row.SubgraphIndex(), sides)
    return found


def _chosen(signatures: Mapping[str, Any], wanted: str | None, label: str) -> str | None:
    if wanted in signatures:
        return wanted
    if wanted is None and not signatures:
        return None
    if wanted is None and (len(signatures) == 1 or _DEFAULT_SIGNATURE in signatures):
        return _DEFAULT_SIGNATURE if _DEFAULT_SIGNATURE in signatures else next(iter(signatures))
    listed = ", ".join(signatures) or "none"
    first = next(iter(signatures), "")
    raise SourceError(
        f"{label}: the TensorFlow Lite model has {len(signatures)} signatures",
        f"{listed}; {'none was chosen' if wanted is None else f'{wanted} is none of them'}",
        f'Choose one: parameters {{ key: "signature" value {{ string_value: "{first}" }} }}'
        if first
        else 'Leave the parameter "signature" out',
    )


def _ends(model: _Model, graph: Any, side: str) -> list[tuple[int, Any]]:
    tensors = model.tensors(graph)
    return [(index, tensors[index]) for index in model.numbers(graph, side)]


def _name(tensor: Any) -> str:
    return str((tensor.Name() or b"").decode("utf-8", "replace"))


def _spec(model: _Model, name: str, tensor: Any, label: str) -> TensorSpec:
    dtype = _TRITON.get(tensor.Type())
    if dtype is None:
        raise SourceError(
            f"{label}: tensor {name} cannot be served",
            f"Triton has no type for TensorFlow Lite's type number {tensor.Type()}",
            "Convert the model with inputs and outputs of usual types",
        )
    signature = model.numbers(tensor, "ShapeSignature")
    shape: Sequence[int] = signature or model.numbers(tensor, "Shape")
    return TensorSpec(name, dtype, tuple(size if size >= 0 else None for size in shape))


def _quantisation(model: _Model, tensor: Any) -> dict[str, Any] | None:
    """Scale and zero point of a quantised tensor; of one quantised by channel, how many."""
    table = tensor.Quantization()
    count = table.ScaleLength() if table is not None else 0
    if not count:
        return None
    if count > 1:
        return {"channels": count, "dimension": table.QuantizedDimension()}
    zero = model.numbers(table, "ZeroPoint")
    return {"scale": float(table.Scale(0)), "zero_point": zero[0] if zero else 0}


def _counts(model: _Model) -> Counter[str]:
    names = model.operators()
    return Counter(
        names[operator.OpcodeIndex()]
        for graph in model.graphs
        for operator in model.rows(graph.OperatorsLength(), graph.Operators)
    )


def _dynamic_range(model: _Model) -> bool:
    """Whether some operator multiplies float activations with int8 weights."""
    for graph in model.graphs:
        tensors = model.tensors(graph)
        for operator in model.rows(graph.OperatorsLength(), graph.Operators):
            types = [tensors[index].Type() for index in model.numbers(operator, "Inputs")[:2] if index >= 0]
            if types == [_FLOAT32, _INT8]:
                return True
    return False
