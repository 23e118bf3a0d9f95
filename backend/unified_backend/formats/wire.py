"""Protobuf messages as they lie in a file, walked without being built: to recognise one, and to leave weights out."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LENGTH", "VARINT", "Bytes", "fields", "lean", "mapped", "varint", "written"]

Bytes = bytes | mmap.mmap
VARINT, LENGTH = 0, 2
_WHOLE = 4096  # bytes: a message up to this size is taken as it is
# Wire types with a fixed length, which floats have.
_FIXED = {1: 8, 5: 4}
_MOST_FIELDS = 2_000_000  # some 2 s of walking; a graph of 100,000 nodes has a tenth of it


@contextmanager
def mapped(path: Path) -> Iterator[Bytes]:
    """The file's bytes, read as they are asked for."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def fields(data: Bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, begin and end of the value of each field of a message.

    A tag that protobuf does not have (groups are none that TensorFlow or ONNX writes) ends it with field 0. The last
    value may end behind `end`: then the message is cut short.
    """
    position, end = start, len(data) if end is None else min(end, len(data))
    while position < end:
        tag, position = varint(data, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            begin = position
            _, position = varint(data, position)
        elif wire_type == LENGTH:
            length, begin = varint(data, position)
            position = begin + length
        elif wire_type in _FIXED:
            begin = position
            position += _FIXED[wire_type]
        else:
            yield 0, wire_type, position, position
            return
        yield field, wire_type, begin, position


def lean(data: Bytes, message: str, inside: Mapping[str, Mapping[int, str]], without: Mapping[str, set[int]]) -> bytes:
    """A message without the fields that make files large.

    Args:
        message: its type, a key of the tables.
        inside: type -> field -> type of the message there, looked into where it is large.
        without: type -> fields that are left out of a large message.

    Raises:
        ValueError: it is cut short, or has more fields than any graph.
    """
    left = _MOST_FIELDS

    def walk(kind: str, start: int, end: int) -> bytes:
        nonlocal left
        parts = []
        kept = position = start
        for field, wire_type, begin, after in fields(data, start, end):
            tag, position = position, after
            left -= 1
            if position > end or not field or not left:
                raise ValueError("it is cut short" if left else "it has more fields than a graph has")
            child = inside.get(kind, {}).get(field) if wire_type == LENGTH else None
            drop = field in without.get(kind, ())
            if not drop and (child is None or position - begin <= _WHOLE):
                continue
            parts.append(data[kept:tag])
            if child is not None and not drop:
                inner = walk(child, begin, position)
                parts.append(written(field << 3 | LENGTH) + written(len(inner)) + inner)
            kept = position
        parts.append(data[kept:position])
        return b"".join(parts)

    return walk(message, 0, len(data)) if len(data) > _WHOLE else data[:]


def written(value: int) -> bytes:
    """A number as a base-128 varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint(data: Bytes, position: int) -> tuple[int, int]:
    """A base-128 varint and the position after it; past the end of the data it reads zeros."""
    value = shift = 0
    while True:
        byte = data[position] if position < len(data) else 0
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80 or shift > 63:
            return value, position
