"""Paddle's programs until version 3: a ProgramDesc of framework.proto, read as it lies in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.wire import LENGTH, VARINT, Bytes, fields, mapped, varint

__all__ = ["is_program", "program_of"]

# Fields of framework.proto.
_BLOCKS = 1
_INDEX, _PARENT, _VARS, _OPS = 1, 2, 3, 4
_VAR_NAME, _VAR_TYPE = 1, 2
_LOD_TENSOR, _TENSOR, _DATA_TYPE, _DIMS = 3, 1, 1, 2
_INPUTS, _OUTPUTS, _OP_TYPE = 1, 2, 3
_ARGUMENTS = 2
_MOST_FIELDS = 8  # of a block, until it is known for one


def is_program(path: Path) -> bool:
    """Whether a file is a message whose first field is a block: its number, its parent's, and variables with names.

    Raises:
        SourceError: it begins as one and ends too early.
    """
    with mapped(path) as data:
        field, wire_type, begin, end = next(fields(data), (0, 0, 0, 0))
        if field != _BLOCKS or wire_type != LENGTH or not _is_block(data, begin, end):
            return False
        if end > len(data):
            raise SourceError(
                f"{path.name} is a truncated Paddle program",
                f"its message needs {end} bytes and the file ends after {len(data)}",
                "Copy it again, completely",
            )
        return True


def _is_block(data: Bytes, begin: int, end: int) -> bool:
    seen = []
    for number, kind, start, stop in fields(data, begin, end):
        seen.append((number, kind))
        if number == _VARS:
            first = next(fields(data, start, stop), None)
            return seen[:2] == [(_INDEX, VARINT), (_PARENT, VARINT)] and first is not None and first[0] == _VAR_NAME
        if len(seen) > _MOST_FIELDS:
            break
    return False


def program_of(path: Path) -> dict[str, Any]:
    """Inputs and outputs of the first block: names, types by their numbers, shapes; and its operators.

    Raises:
        ValueError: it is cut short.
        KeyError: what is fed or fetched is no tensor of the block's.
    """
    variables: dict[str, tuple[int, tuple[int | None, ...]]] = {}
    found: dict[str, Any] = {"inputs": [], "outputs": [], "operators": []}
    operators = []
    with mapped(path) as data:
        _, _, begin, end = next(fields(data), (0, 0, 0, 0))
        for number, kind, start, stop in fields(data, begin, end):
            if not number or stop > len(data):
                raise ValueError("it is cut short")
            if number == _VARS and kind == LENGTH and (read := _variable(data, start, stop)):
                variables[read[0]] = read[1:]
            elif number == _OPS and kind == LENGTH:
                operators.append(_operator(data, start, stop))
    for name, inputs, outputs in operators:
        found["operators"].append(name)
        for side, names in (
            ("inputs", outputs if name == "feed" else ()),
            ("outputs", inputs if name == "fetch" else ()),
        ):
            found[side].extend((each, *variables[each]) for each in names)
    found["inputs"].reverse()  # feeds stand in front of each other
    return found


def _variable(data: Bytes, start: int, stop: int) -> tuple[str, int, tuple[int | None, ...]] | None:
    """Name, type and shape of a tensor; None for what is none."""
    name, tensor = "", None
    for number, _, begin, end in fields(data, start, stop):
        if number == _VAR_NAME:
            name = _text(data, begin, end)
        elif number == _VAR_TYPE:
            tensor = _inside(data, (_LOD_TENSOR, _TENSOR), begin, end)
    if tensor is None:
        return None
    dtype, shape = 0, list[int | None]()
    for number, kind, begin, end in fields(data, *tensor):
        if number == _DATA_TYPE:
            dtype = varint(data, begin)[0]
        elif number == _DIMS:
            position = begin
            while position < (end if kind == LENGTH else begin + 1):
                size, position = varint(data, position)
                shape.append(size if size < 2**63 else None)
    return name, dtype, tuple(shape)


def _operator(data: Bytes, start: int, stop: int) -> tuple[str, list[str], list[str]]:
    """Type, and the variables that it takes and gives."""
    name, sides = "", {_INPUTS: list[str](), _OUTPUTS: list[str]()}
    for number, _, begin, end in fields(data, start, stop):
        if number == _OP_TYPE:
            name = _text(data, begin, end)
        elif number in sides:
            arguments = fields(data, begin, end)
            sides[number] += [_text(data, at, until) for field, _, at, until in arguments if field == _ARGUMENTS]
    return name, sides[_INPUTS], sides[_OUTPUTS]


def _inside(data: Bytes, way: tuple[int, ...], begin: int, end: int) -> tuple[int, int] | None:
    for wanted in way:
        found = next(((at, until) for number, _, at, until in fields(data, begin, end) if number == wanted), None)
        if found is None:
            return None
        begin, end = found
    return begin, end


def _text(data: Bytes, begin: int, end: int) -> str:
    return bytes(data[begin:end]).decode("utf-8", "replace")
