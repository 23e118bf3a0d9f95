"""A DALI pipeline as it is serialised (protobuf, dali.proto's PipelineDef), read without DALI."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from unified_backend.formats.wire import LENGTH, VARINT, fields, varint, written

__all__ = ["Port", "decodes_sound", "is_pipeline", "on_cpu", "ports"]

# Fields of PipelineDef, OpDef, InputOutput, Argument and the output's description, as DALI 1.0 to 2.4 write them.
_THREADS, _BATCH, _OPERATOR, _OUTPUT = 1, 2, 5, 7
_NAME, _OPERATOR_INPUT, _OPERATOR_OUTPUT, _ARGUMENT = 1, 2, 3, 4
_DEVICE, _NUMBER, _STRING, _OUTPUT_TYPE, _OUTPUT_RANK = 2, 4, 5, 5, 6
_ON_GPU, _ON_CPU = (b"gpu", b"mixed"), b"cpu"
_SOURCE, _SOUND = "ExternalSource", ("decoders__Audio", "AudioDecoder")  # the latter before DALI 1.0
# DALIDataType
_TYPES = {
    **{0: "UINT8", 1: "UINT16", 2: "UINT32", 3: "UINT64", 4: "INT8", 5: "INT16", 6: "INT32", 7: "INT64"},
    **{8: "FP16", 9: "FP32", 10: "FP64", 11: "BOOL"},
}


@dataclasses.dataclass(frozen=True)
class Port:
    """An external source, or an output.

    Attributes:
        dtype: Triton's name; None where the pipeline does not say.
        rank: dimensions of one sample; None where it does not say.
    """

    name: str
    dtype: str | None
    rank: int | None


def is_pipeline(data: bytes) -> bool:
    """Whether these bytes, the first of a file, are those of a pipeline: two numbers, and operators that follow."""
    begun = []
    for field, wire_type, begin, end in fields(data):
        begun.append((field, wire_type))
        if len(begun) == 3:
            named = next(fields(data, begin, min(end, len(data))), (0, 0, 0, 0))
            start = [(_THREADS, VARINT), (_BATCH, VARINT), (_OPERATOR, LENGTH)]
            return begun == start and named[:2] == (_NAME, LENGTH) and named[3] <= len(data)
        if end > len(data):
            break
    return False


def ports(data: bytes) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The external sources and the outputs, in the pipeline's order.

    Raises:
        ValueError: it is cut short, or no pipeline.
    """
    inputs, outputs = [], []
    for field, wire_type, begin, end in fields(data):
        if end > len(data) or not field:
            raise ValueError("it is cut short, or something else")
        if wire_type != LENGTH:
            continue
        if field == _OPERATOR and _text(data, begin, end) == _SOURCE:
            inputs.append(_source(data, begin, end))
        elif field == _OUTPUT:
            numbers = _numbers(data, begin, end)
            rank = _signed(numbers.get(_OUTPUT_RANK))
            outputs.append(
                Port(_text(data, begin, end), _TYPES.get(numbers.get(_OUTPUT_TYPE, -1)), None if rank < 0 else rank)
            )
    if not outputs:
        raise ValueError("it has no output")
    return tuple(inputs), tuple(outputs)


def decodes_sound(data: bytes) -> bool:
    """Whether one of the operators is a decoder of sound files."""
    return any(field == _OPERATOR and _text(data, begin, end) in _SOUND for field, _, begin, end in fields(data))


def on_cpu(data: bytes) -> bytes:
    """The pipeline with every operator on the CPU: `mixed` decoding and `.gpu()` are for hosts that have one."""

    def tensor(begin: int, end: int) -> bytes:
        return _rewritten(data, begin, end, {_DEVICE: device})

    def argument(begin: int, end: int) -> bytes:
        if _text(data, begin, end) != "device":
            return data[begin:end]
        return _rewritten(data, begin, end, {_STRING: device})

    def operator(begin: int, end: int) -> bytes:
        inside = {_OPERATOR_INPUT: tensor, _OPERATOR_OUTPUT: tensor, _ARGUMENT: argument}
        return _rewritten(data, begin, end, inside)

    def device(begin: int, end: int) -> bytes:
        return _ON_CPU if data[begin:end] in _ON_GPU else data[begin:end]

    return _rewritten(data, 0, len(data), {_OPERATOR: operator, _OUTPUT: tensor})


def _rewritten(data: bytes, begin: int, end: int, inside: Mapping[int, Callable[[int, int], bytes]]) -> bytes:
    """A message, with what the functions make of the values of their fields."""
    parts, kept = [], begin
    for field, wire_type, first, last in fields(data, begin, end):
        if wire_type == LENGTH and field in inside:
            value = inside[field](first, last)
            parts.append(written(field << 3 | LENGTH) + written(len(value)) + value)
        else:
            parts.append(data[kept:last])
        kept = last
    return b"".join(parts)


def _source(data: bytes, begin: int, end: int) -> Port:
    name, arguments = "", {}
    for field, _, first, last in fields(data, begin, end):
        if field == _OPERATOR_OUTPUT:
            name = name or _text(data, first, last)
        elif field == _ARGUMENT:
            arguments[_text(data, first, last)] = _numbers(data, first, last).get(_NUMBER)
    rank = _signed(arguments.get("ndim"))
    return Port(name, _TYPES.get(_signed(arguments.get("dtype"))), None if rank < 0 else rank)


def _text(data: bytes, begin: int, end: int) -> str:
    for field, wire_type, first, last in fields(data, begin, end):
        if field == _NAME and wire_type == LENGTH:
            return data[first:last].decode("utf-8", "replace")
    return ""


def _numbers(data: bytes, begin: int, end: int) -> dict[int, int]:
    return {field: varint(data, first)[0] for field, kind, first, _ in fields(data, begin, end) if kind == VARINT}


def _signed(number: int | None) -> int:
    """A varint of 64 bits as a signed number; -1 for one that is not there."""
    return -1 if number is None else number - (1 << 64) if number >> 63 else number
