"""Operators of a TensorFlow Lite file, and what they tell of its weights: floats, quantised, sparse."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any, Protocol

__all__ = ["Operators", "Weights", "operator_names", "weights_of"]

_CUSTOM = "CUSTOM"
_FLOAT32, _FLOAT16, _UINT8, _INT16, _INT8, _INT4 = 0, 1, 3, 7, 9, 17
_INTEGERS = frozenset({_UINT8, _INT16, _INT8, _INT4})
# Operators that multiply float activations by quantised weights: they quantise the activations as they run.
_HYBRID = frozenset(
    {
        *("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL", "SVDF", "RNN", "LSTM", "TRANSPOSE_CONV"),
        *("UNIDIRECTIONAL_SEQUENCE_RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"),
        *("BIDIRECTIONAL_SEQUENCE_RNN", "CONV_3D"),
    }
)


class File(Protocol):
    """What is needed of an opened file."""

    codes: list[Any]
    graphs: list[Any]
    tensors: list[list[Any]]

    def rows(self, table: Any, name: str) -> Any:
        """The entries of a vector."""
        ...

    def text(self, value: bytes | None) -> str:
        """A name."""
        ...

    def tensor(self, graph: int, index: int) -> Any:
        """A tensor of a graph."""
        ...


@dataclasses.dataclass(frozen=True)
class Operators:
    """The operators of all graphs.

    Attributes:
        counts: name -> how often, the most frequent first.
        custom: names of those that are not in the schema.
        uses: (graph, name, operator table), in order.
    """

    counts: dict[str, int]
    custom: list[str]
    uses: list[tuple[int, str, Any]]


@dataclasses.dataclass(frozen=True)
class Weights:
    """What the constants of a file are.

    Attributes:
        types: TensorType -> how many constants.
        per_channel: constants with a scale for each channel.
        sparse: constants with fewer values than elements.
        dynamic_range: operators with float activations and integer weights.
        kind: `float32`, `float16`, `dynamic range`, `integer` or `mixed`.
    """

    types: dict[int, int]
    per_channel: int
    sparse: int
    dynamic_range: bool
    kind: str


def operator_names(file: File) -> Operators:
    """Every operator of every graph by its name."""
    known = _builtins()
    names, custom = [], []
    for code in file.codes:
        number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        name = known.get(number, f"BUILTIN_{number}")
        if name == _CUSTOM:
            name = file.text(code.CustomCode()) or _CUSTOM
            custom.append(name)
        names.append(name)
    uses = []
    for graph, table in enumerate(file.graphs):
        for operator in file.rows(table, "Operators"):
            index = operator.OpcodeIndex()
            if not 0 <= index < len(names):
                raise IndexError(f"there is no operator code {index}")
            uses.append((graph, names[index], operator))
    counts = Counter(name for _, name, _ in uses)
    return Operators(dict(counts.most_common()), sorted(set(custom) & set(counts)), uses)


def weights_of(file: File, operators: Operators) -> Weights:
    """What the constants are, and how they are used."""
    given = {
        (graph, index) for graph, table in enumerate(file.graphs) for index in file.rows(table, "Inputs")
    }  # an input's tensor has a buffer too, an empty one
    made: set[tuple[int, int]] = set()
    dynamic_range = integer = False
    for graph, name, operator in operators.uses:
        inputs = [index for index in file.rows(operator, "Inputs") if index >= 0]  # -1: an optional one left out
        made.update((graph, index) for index in file.rows(operator, "Outputs"))
        kinds = [file.tensor(graph, index).Type() for index in inputs[:2]]
        if name in _HYBRID and len(kinds) == 2:
            dynamic_range |= kinds[0] == _FLOAT32 and kinds[1] in _INTEGERS
            integer |= kinds[0] in _INTEGERS
    constants = [
        tensor
        for graph, tensors in enumerate(file.tensors)
        for index, tensor in enumerate(tensors)
        if (graph, index) not in made and (graph, index) not in given and not tensor.IsVariable()
    ]
    types = dict(Counter(tensor.Type() for tensor in constants))
    scales = (tensor.Quantization() for tensor in constants)
    per_channel = sum(1 for row in scales if row is not None and row.ScaleLength() > 1)
    sparse = sum(1 for tensor in constants if tensor.Sparsity() is not None)
    if dynamic_range or integer:
        kind = "mixed" if dynamic_range and integer else "dynamic range" if dynamic_range else "integer"
    else:
        kind = "float16" if _FLOAT16 in types else "float32"
    return Weights(types, per_channel, sparse, dynamic_range, kind)


@functools.cache
def _builtins() -> dict[int, str]:
    """BuiltinOperator of the schema: number -> name."""
    from tflite.BuiltinOperator import BuiltinOperator

    return {value: name for name, value in vars(BuiltinOperator).items() if not name.startswith("_")}
