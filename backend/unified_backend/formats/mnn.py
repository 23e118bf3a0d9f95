"""MNN files: one flatbuffer without an identifier, known by the table of a net with its operators and tensors."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, as_asked, telling
from unified_backend.formats.flatbuffer import Flatbuffer, Table
from unified_backend.formats.mnn_operators import CONST, CONVOLUTION_PARAMETER, INPUT, TRAINABLE, operator_name
from unified_backend.formats.wire import mapped
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["EXTERNAL", "LAYOUTS", "Mnn", "net_of"]

# Slots of the tables Net, Op, Input, Convolution2D and IDSTQuan in MNN.fbs.
_BIZ_CODE, _OPERATORS, _OUTPUTS, _SOURCE, _TENSORS, _SUBGRAPHS = 0, 3, 4, 6, 7, 10
_INPUTS_OF, _PARAMETER_TYPE, _PARAMETER, _NAME, _OUTPUTS_OF, _TYPE = 0, 1, 2, 3, 4, 5
_DIMS, _DATA_TYPE, _LAYOUT = 0, 1, 2
_QUANTISED, _QUANTISED_TYPE = 3, 2
# Parameters with weights that may lie in another file (Blob, Convolution2D, Scale, Convolution3D, LayerNorm) -> slot of
# their offset and sizes there.
_APART = {7: 9, 9: 6, 58: 3, 80: 3, 88: 5}
_SOURCES = ("Caffe", "TensorFlow", "TensorFlow Lite", "ONNX", "PyTorch")
LAYOUTS = ("NCHW", "NHWC", "NC4HW4")  # MNN_DATA_FORMAT in the schema
_DEFAULT_LAYOUT = 2
# DataType in the schema -> Triton's. MNN computes with 32 bits whatever it was made from; its Python interface takes no
# arrays of other types.
_TYPES = {1: "FP32", 2: "FP32", 3: "INT32", 4: "UINT8", 9: "INT32", 10: "INT32", 19: "FP32"}
_WEIGHTS = {1: "integers of a table", 2: "sparse integers", 3: "float16", 4: "int8"}  # of IDSTQuan
_MOST_RANK, _FIRST = 8, 3
EXTERNAL = ".weight"  # what the converter puts beside the file, if it is asked for external data
_SUFFIX = ".mnn"


@dataclasses.dataclass(frozen=True)
class Net:
    """What a file says.

    Attributes:
        inputs: names, types and shapes.
        layouts: input name -> one of `LAYOUTS`.
        outputs: their names; types and shapes are known when it has run.
        apart: where the last of the weights ends that lie in a file of their own; 0 if none do.
        facts: for people.
    """

    inputs: tuple[TensorSpec, ...]
    layouts: dict[str, str]
    outputs: tuple[str, ...]
    apart: int
    facts: dict[str, Any]


class Mnn:
    """The MNN format: one flatbuffer, and its weights beside it where they are kept apart."""

    name = "mnn"

    def detect(self, path: Path) -> bool:
        """Whether the root table is a net; of a file called `.mnn`, whether it could be the begin of one."""
        with mapped(path) as data:
            try:
                root = Flatbuffer(data).root()
            except ValueError:
                return False
            try:
                first = [operator for operator, _ in zip(root.tables(_OPERATORS), range(_FIRST), strict=False)]
                return bool(first) and bool(root.texts(_TENSORS)) and all(map(_is_operator, first))
            except ValueError:
                return path.suffix == _SUFFIX

    def companions(self, path: Path) -> list[str]:
        """The file of weights, where it was written apart."""
        beside = path.with_name(path.name + EXTERNAL)
        return [beside.name] if beside.is_file() or net_of(path).apart else []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file says.

        Raises:
            SourceError: it is damaged, or has an input that cannot be served.
            ConfigError: a parameter names what the model has not got.
        """
        net = net_of(path)
        _require_weights(path, net.apart)
        with telling(net.facts):
            for spec in net.inputs:
                if not spec.dtype:
                    raise SourceError(
                        f"{label}: the input {spec.name} cannot be served",
                        "MNN's Python interface takes no arrays of its type",
                        "Convert the model with inputs of type float, int32 or uint8",
                    )
            if not net.inputs or not net.outputs:
                raise SourceError(
                    f"{label}: the MNN file has no {'outputs' if net.inputs else 'inputs'}",
                    "it is part of a model, or one that is for training",
                    "Convert the whole model",
                )
        # Until it has run, an output's type and shape are not known.
        outputs = tuple(TensorSpec(name, "FP32", None) for name in net.outputs)
        described = Description(net.inputs, outputs, facts=net.facts, untyped=tuple(net.outputs))
        return as_asked(described, settings, label)


def net_of(path: Path) -> Net:
    """What a file says.

    Raises:
        SourceError: it is damaged.
    """
    with mapped(path) as data:
        try:
            return _net(Flatbuffer(data).root())
        except ValueError as error:
            raise SourceError(
                f"{path.name} is a damaged MNN file", str(error), "Convert it again, or copy it again completely"
            ) from None


def _net(root: Table) -> Net:
    operators = list(root.tables(_OPERATORS))
    names = root.texts(_TENSORS)

    def tensor(index: int) -> str:
        if not 0 <= index < len(names):
            raise ValueError(f"there is no tensor {index}")
        return names[index]

    kinds = [operator.number(_TYPE) for operator in operators]
    inputs, layouts, taken = list[TensorSpec](), dict[str, str](), set[int]()
    made, weights, apart = list[int](), Counter[str](), 0
    for operator, kind in zip(operators, kinds, strict=True):
        given, results = operator.numbers(_INPUTS_OF), operator.numbers(_OUTPUTS_OF)
        taken.update(given)
        if kind == INPUT:
            spec, layout = _input(operator, tensor(results[0]) if results else operator.text(_NAME))
            inputs.append(spec)
            layouts[spec.name] = layout
        elif kind not in (CONST, TRAINABLE):
            made += results
        apart = max(apart, _end_apart(operator))
        if stored := _stored(operator):
            weights[stored] += 1
    outputs = root.texts(_OUTPUTS) or [tensor(index) for index in made if index not in taken]
    facts = {
        "made from": _entry(_SOURCES, root.number(_SOURCE, "<b")),
        "code": root.text(_BIZ_CODE),
        "operators": dict(Counter(map(operator_name, kinds)).most_common()),
        "subgraphs": sum(1 for _ in root.tables(_SUBGRAPHS)),
        "layouts": layouts,
        "compressed weights": dict(weights),
    }
    return Net(tuple(inputs), layouts, tuple(dict.fromkeys(outputs)), apart, facts)


def _input(operator: Table, name: str) -> tuple[TensorSpec, str]:
    parameter = operator.table(_PARAMETER)
    if parameter is None:
        return TensorSpec(name, "FP32", None), LAYOUTS[_DEFAULT_LAYOUT]
    dims = parameter.numbers(_DIMS)
    if len(dims) > _MOST_RANK:
        raise ValueError(f"an input has {len(dims)} dimensions")
    shape = tuple(size if size > 0 else None for size in dims) if dims else None
    layout = _entry(LAYOUTS, parameter.number(_LAYOUT, "<b", _DEFAULT_LAYOUT))
    return TensorSpec(name, _TYPES.get(parameter.number(_DATA_TYPE, "<i", 1), ""), shape), layout


def _stored(operator: Table) -> str | None:
    """How a convolution's weights are kept, where it is not as float32."""
    if operator.number(_PARAMETER_TYPE, "<B") != CONVOLUTION_PARAMETER:
        return None
    parameter = operator.table(_PARAMETER)
    quantised = parameter.table(_QUANTISED) if parameter else None
    return _WEIGHTS.get(quantised.number(_QUANTISED_TYPE)) if quantised else None


def _end_apart(operator: Table) -> int:
    """Where an operator's weights end in the other file; 0 if they do not lie there."""
    slot = _APART.get(operator.number(_PARAMETER_TYPE, "<B"))
    parameter = None if slot is None else operator.table(_PARAMETER)
    return sum(parameter.numbers(slot, "<q")) if parameter and slot is not None else 0


def _require_weights(path: Path, end: int) -> None:
    """
    Raises:
        SourceError: the file of weights is missing or too short; MNN would serve without them.
    """
    weights = path.with_name(path.name + EXTERNAL)
    there = weights.stat().st_size if weights.is_file() else None
    if end and (there is None or there < end):
        raise SourceError(
            f"{weights.name} is {'missing' if there is None else 'cut short'}",
            f"{path.name} places weights up to byte {end} in it"
            + ("" if there is None else f", and it ends after {there}"),
            "Copy both files again, completely",
        )


def _is_operator(table: Table) -> bool:
    return 0 <= table.number(_TYPE) < 10_000 and (bool(table.text(_NAME)) or bool(table.numbers(_OUTPUTS_OF)))


def _entry(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"number {number}"
