"""Reads what a Keras HDF5 file says of itself; a program of its own, for what damaged files do to HDF5's C library.

`python -P hdf5_reader.py PATH [OFFSET SIZE]` prints one JSON object: `attributes` of the root, and `weights`, each
dataset's shape and type. `{"error": ...}` where HDF5 refuses the file. Imports nothing of this package.
"""

from __future__ import annotations

import io
import json
import math
import resource
import sys
from typing import Any

_MEMORY = 2 * 2**30  # of address space: libraries take 0.6 GiB of it
_SECONDS = 20  # of processor time; the parent's clock is stricter
_MOST_TEXT = 32 * 2**20  # bytes of one attribute
_MOST_WEIGHTS = 50_000
_ATTRIBUTES = ("model_config", "keras_version", "backend", "training_config", "layer_names")


class _Part(io.RawIOBase):
    """Some bytes of a file as a file: the member of an archive that is stored as it is."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115, PTH123 - closed with the process; nothing but built-ins here
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._position)
        read = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._position)])
        self._position += read
        return read


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and len(value) <= _MOST_TEXT else None


def read(path: str, part: tuple[int, int] | None) -> dict[str, Any]:
    """The root's attributes that Keras writes, and every dataset below it."""
    import h5py

    with h5py.File(_Part(path, *part) if part else path, "r") as file:
        attributes = {}
        for name in _ATTRIBUTES:
            if name in file.attrs and file.attrs.get_id(name).get_storage_size() <= _MOST_TEXT:
                attributes[name] = _text(file.attrs[name])
        weights: dict[str, Any] = {}

        def visit(name: str, item: Any) -> bool | None:
            if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
                weights[name] = {"shape": list(item.shape or ()), "dtype": str(item.dtype)}
            return True if len(weights) >= _MOST_WEIGHTS else None

        file.visititems(visit)
    return {
        "attributes": attributes,
        "weights": weights,
        "parameters": sum(math.prod(row["shape"]) for row in weights.values()),
    }


def main() -> None:
    """Print what the file says, within limits that a damaged file cannot pass."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path, *part = sys.argv[1:]
    try:
        result = read(path, (int(part[0]), int(part[1])) if part else None)
    except Exception as error:  # noqa: BLE001 - h5py raises what the C library's error happens to be mapped to
        result = {"error": f"{type(error).__name__}: {error}"[:500]}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
