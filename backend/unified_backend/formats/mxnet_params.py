"""MXNet's files of parameters: names, types and shapes of the arrays, read without MXNet and without the values.

The format is what `NDArray::Save` in src/ndarray/ndarray.cc of MXNet 1.9.1 writes, and what it wrote since 0.8.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from unified_backend.errors import SourceError

__all__ = ["MAGIC", "is_params", "shapes_of"]

MAGIC = struct.pack("<Q", 0x112)  # kMXAPINDArrayListMagic
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_SIZES = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8, 7: 1, 8: 2, 9: 2, 10: 4, 11: 8, 12: 2}  # type flag -> bytes
_DENSE = 0
_MOST_ARRAYS, _MOST_DIMENSIONS, _MOST_NAME = 1_000_000, 32, 65_536


def is_params(path: Path) -> bool:
    """Whether a file begins as a list of arrays."""
    with path.open("rb") as file:
        return file.read(8) == MAGIC


def shapes_of(path: Path) -> Mapping[str, tuple[int, ...]]:
    """Name without `arg:` or `aux:` -> shape.

    Raises:
        SourceError: it is damaged, cut short, or holds arrays that are not dense.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            if file.read(8) != MAGIC:
                raise ValueError("it does not begin as one")
            _, count = struct.unpack("<QQ", file.read(16))
            if count > _MOST_ARRAYS:
                raise ValueError(f"it states {count} arrays")
            shapes = [_array(file, size) for _ in range(count)]
            (named,) = struct.unpack("<Q", file.read(8))
            if named != count:
                raise ValueError(f"it has {count} arrays and {named} names")
            names = [_name(file) for _ in range(named)]
    except (struct.error, ValueError) as error:
        why = "it ends too early" if isinstance(error, struct.error) else str(error)
        raise SourceError(
            f"{path.name} is a damaged file of MXNet's parameters", why, "Copy it again, completely"
        ) from None
    return {name.partition(":")[2] or name: shape for name, shape in zip(names, shapes, strict=True)}


def _array(file: BinaryIO, size: int) -> tuple[int, ...]:
    """The shape of the array that begins here; the file is left behind its values."""
    (magic,) = struct.unpack("<I", file.read(4))
    if magic in (_V2, _V3):
        (storage,) = struct.unpack("<i", file.read(4))
        if storage != _DENSE:
            raise ValueError("it holds a sparse array, which no exporter takes")
    if magic in (_V1, _V2, _V3):
        (rank,) = struct.unpack("<i", file.read(4))
        width, empty = "q", -1 if magic == _V3 else 0
    else:
        rank, width, empty = magic, "I", 0  # until MXNet 0.11 there was no magic number
    if rank == empty:
        return ()
    if not 0 <= rank <= _MOST_DIMENSIONS:
        raise ValueError(f"it holds an array of {rank} dimensions")
    shape = struct.unpack(f"<{rank}{width}", file.read(rank * struct.calcsize(f"<{width}")))
    _, _, flag = struct.unpack("<iii", file.read(12))  # device type and number, type of the values
    if flag not in _SIZES:
        raise ValueError(f"it holds values of a type {flag}, which MXNet has not got")
    if min(shape, default=0) < 0 or file.tell() + math.prod(shape) * _SIZES[flag] > size:
        raise ValueError("it ends inside the values of an array")
    file.seek(math.prod(shape) * _SIZES[flag], 1)
    return shape


def _name(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MOST_NAME:
        raise ValueError(f"it states a name of {length} bytes")
    name = file.read(length)
    if len(name) < length:
        raise ValueError("it ends inside a name")
    return name.decode("utf-8", "replace")
