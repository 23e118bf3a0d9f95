"""Tables as LevelDB has them, in which TensorFlow keeps the index of a checkpoint: rows, checked as they are read.

https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from unified_backend.formats.wire import varint

__all__ = ["rows_of"]

_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER, _TRAILER = 48, 5  # bytes; a block's trailer is its compression and its checksum
_PLAIN, _SNAPPY = 0, 1
_MOST_CHECKED = 2 * 2**20  # bytes whose checksums are computed, which takes 0.1 s for each million here


def rows_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of a table; those in a packed block, which TensorFlow does not write, are passed over.

    Raises:
        ValueError: it is damaged, and how.
    """
    if len(data) < _FOOTER or not data.endswith(_MAGIC):
        raise ValueError("it does not end as a table does: it is cut short, or something else")
    left = _MOST_CHECKED
    _, _, position = _handle(data, len(data) - _FOOTER)
    begin, size, _ = _handle(data, position)
    whole = len(data)
    for _, value in list(_rows(_block(data, begin, size, left))):
        begin, size, _ = _handle(value, 0)
        left, whole = left - size, whole - size
        if whole < 0:
            raise ValueError("its blocks lie on each other")
        yield from _rows(_block(data, begin, size, left))


def _handle(data: bytes, position: int) -> tuple[int, int, int]:
    """Where a block begins, its size, and the position after that statement."""
    begin, position = varint(data, position)
    size, position = varint(data, position)
    return begin, size, position


def _block(data: bytes, begin: int, size: int, left: int) -> bytes:
    end = begin + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise ValueError(f"a block at byte {begin} reaches beyond its end")
    kind, stated = data[end], int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if left > 0 and _masked(_crc32c(data[begin : end + 1])) != stated:
        raise ValueError(f"the checksum of its block at byte {begin} does not agree")
    if kind not in (_PLAIN, _SNAPPY):
        raise ValueError(f"a block at byte {begin} is packed in a way that is none")
    return data[begin:end] if kind == _PLAIN else bytes(4)


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows in front of the positions at which a reader may start, of which the last number says how many."""
    end = len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1)
    if len(block) < 4 or end < 0:
        raise ValueError("a block is too short for what it states")
    key, position = b"", 0
    while position < end:
        shared, position = varint(block, position)
        own, position = varint(block, position)
        size, position = varint(block, position)
        if shared > len(key) or position + own + size > end:
            raise ValueError("a row reaches beyond its block")
        key = key[:shared] + block[position : position + own]
        position += own + size
        yield key, block[position - size : position]


def _masked(checksum: int) -> int:
    """As it is stored, so that a checksum of bytes that hold checksums is a good one."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c(data: bytes) -> int:
    table = _crc_table()
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum = table[(checksum ^ byte) & 0xFF] ^ checksum >> 8
    return checksum ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table
