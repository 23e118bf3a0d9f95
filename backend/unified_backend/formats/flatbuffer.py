"""Tables of a flatbuffer read without generated code: every offset is checked, and everything read is counted."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from unified_backend.formats.wire import Bytes

__all__ = ["Flatbuffer", "Table"]

_OFFSET = struct.Struct("<I")
_LEAST = 8  # bytes: an offset to the root, and a table that is nothing but the offset of its slots
_MOST_SLOTS = 1024


class Flatbuffer:
    """A file's tables. A damaged one may have its vectors lie on each other: together they are never read for ever."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self._left = 4 * len(data) + 10_000

    def root(self) -> Table:
        """The table that all others hang on.

        Raises:
            ValueError: there is none.
        """
        if len(self.data) < _LEAST:
            raise ValueError("it is too short")
        return Table(self, self.number("<I", 0))

    def number(self, form: str, position: int) -> int:
        """The number at a position, in the notation of `struct`.

        Raises:
            ValueError: it lies outside of the file.
        """
        try:
            return int(struct.unpack_from(form, self.data, self._inside(position))[0])
        except struct.error:
            raise ValueError(f"an offset leads to byte {position} of {len(self.data)}") from None

    def spend(self, count: int) -> None:
        """Count bytes that are read.

        Raises:
            ValueError: there are more than a file of this size has.
        """
        self._left -= count
        if not 0 <= count <= len(self.data) or self._left < 0:
            raise ValueError("it states more entries than it can hold")

    def _inside(self, position: int) -> int:
        if not 0 <= position < len(self.data):
            raise ValueError(f"an offset leads to byte {position} of {len(self.data)}")
        return position


class Table:
    """A table: fields in numbered slots, each of which may be left out."""

    def __init__(self, file: Flatbuffer, position: int) -> None:
        self._file = file
        self._position = position
        file.spend(_OFFSET.size)
        self._slots_at = position - file.number("<i", position)
        size = file.number("<H", self._slots_at)
        if size < 4 or size % 2 or size > 4 + 2 * _MOST_SLOTS:
            raise ValueError(f"a table at byte {position} has slots of {size} bytes")
        self._slots = (size - 4) // 2

    def number(self, slot: int, form: str = "<i", default: int = 0) -> int:
        """A number, in the notation of `struct`; the default of the schema where it is left out."""
        at = self._at(slot)
        return default if at is None else self._file.number(form, at)

    def numbers(self, slot: int, form: str = "<i") -> list[int]:
        """A vector of numbers; empty where it is left out."""
        return [self._file.number(form, at) for at in self._entries(slot, struct.calcsize(form))]

    def text(self, slot: int) -> str:
        """A text; empty where it is left out."""
        at = self._at(slot)
        return "" if at is None else self._text(at)

    def texts(self, slot: int) -> list[str]:
        """A vector of texts; empty where it is left out."""
        return [self._text(at) for at in self._entries(slot, _OFFSET.size)]

    def table(self, slot: int) -> Table | None:
        """A table, or None where it is left out."""
        at = self._at(slot)
        return None if at is None else Table(self._file, at + self._file.number("<I", at))

    def tables(self, slot: int) -> Iterator[Table]:
        """A vector of tables; none where it is left out."""
        return (Table(self._file, at + self._file.number("<I", at)) for at in self._entries(slot, _OFFSET.size))

    def _at(self, slot: int) -> int | None:
        if slot >= self._slots:
            return None
        offset = self._file.number("<H", self._slots_at + 4 + 2 * slot)
        return self._position + offset if offset else None

    def _entries(self, slot: int, size: int) -> range:
        at = self._at(slot)
        if at is None:
            return range(0)
        start = at + self._file.number("<I", at)
        count = self._file.number("<I", start)
        self._file.spend(count * size)
        return range(start + _OFFSET.size, start + _OFFSET.size + count * size, size)

    def _text(self, at: int) -> str:
        start = at + self._file.number("<I", at)
        length = self._file.number("<I", start)
        self._file.spend(length)
        begin = start + _OFFSET.size
        if begin + length > len(self._file.data):
            raise ValueError(f"a text ends at byte {begin + length} of {len(self._file.data)}")
        return bytes(self._file.data[begin : begin + length]).decode("utf-8", "replace")
