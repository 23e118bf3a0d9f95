"""Memory that is not asked for twice: allocator thresholds, and large outputs written straight into shared memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unified_backend.tensors import Array, TensorSpec

__all__ = ["LARGE_BYTES", "Large", "OutputSlots", "keep_freed_memory"]

# From this size on, writing the output where the server reads it saves more than the bookkeeping costs (measured: a
# 12 MB identity over shared memory 1.13x at concurrency 1, 1.44x at 4; nothing below about a megabyte).
LARGE_BYTES = 1 << 20
_BUDGET_BYTES = 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory up to 1 GiB; False where the C library has no mallopt (musl).

    By default glibc gives the top of the heap back at each large free, and the next request faults the same pages in
    again: 105 page faults a request at 0.6 MB inputs, and 1.7 to 1.9 times the throughput without them. (Huge pages for
    the heap made no difference beyond that.)
    """
    libc = ctypes.CDLL(None)
    try:
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES) and libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
    except AttributeError:
        return False


class OutputSlots:
    """Response tensors that are used again, because their bytes already lie in the stub's shared memory.

    A `pb_utils.Tensor` moves into shared memory when it is first sent. Kept, it can be written to in place and sent
    again without a copy. That is safe because one instance strictly alternates: the server has copied every output of
    an execution out before it sends the next one. A slot therefore belongs to one position of the batch.
    """

    def __init__(self, pb_utils: Any) -> None:
        self._pb_utils = pb_utils
        self._slots: dict[tuple[int, str, tuple[int, ...]], tuple[Any, Array | None]] = {}
        self._free = min(_BUDGET_BYTES, _shared_memory_free() // 4)

    def target(self, position: int, name: str, shape: tuple[int, ...]) -> Array | None:
        """Memory that the output of this position may be written to, or None before the slot exists."""
        key = (position, name, shape)
        if key not in self._slots:
            return None
        tensor, view = self._slots[key]
        if view is None:
            # Only now has the tensor been sent, so only now does its pointer lie in shared memory.
            view = _writable_view(np.from_dlpack(tensor))
            self._slots[key] = (tensor, view)
        return view

    def tensor(self, position: int, name: str, array: Array) -> Any:
        """The tensor to answer with: the slot's own if `array` is its memory, else a new one, kept if there is room."""
        key = (position, name, array.shape)
        kept = self._slots.get(key)
        if kept is not None and kept[1] is array:
            return kept[0]
        tensor = self._pb_utils.Tensor(name, array)
        if kept is None and array.nbytes <= self._free:
            self._free -= array.nbytes
            self._slots[key] = (tensor, None)
        return tensor

    def clear(self) -> None:
        """Give the memory back."""
        self._slots.clear()


class Large:
    """Outputs whose shape is known from the inputs before the run, so that they can be written in place."""

    def __init__(self, outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec]) -> None:
        self._sources: dict[str | int, tuple[str, int]] = {}
        for spec in inputs:
            for axis, size in enumerate(spec.shape or ()):
                if isinstance(size, str):
                    self._sources.setdefault(size, (spec.name, axis))
        self._shapes = {
            spec.name: spec.shape
            for spec in outputs
            if spec.dtype not in ("STRING", "BYTES", "BF16")
            and spec.shape
            and all(isinstance(size, int) or size in self._sources for size in spec.shape if size is not None)
            and None not in spec.shape
        }
        self.names = frozenset(self._shapes)

    def shape(self, name: str, feeds: Mapping[str, Array]) -> tuple[int, ...] | None:
        """The shape that the output will have for these inputs."""
        sizes = []
        for size in self._shapes[name]:
            if isinstance(size, int):
                sizes.append(size)
            elif size is not None:
                source, axis = self._sources[size]
                sizes.append(feeds[source].shape[axis])
        return tuple(sizes)


def _writable_view(array: Array) -> Array:
    """The same memory without NumPy's read-only flag for DLPack imports; the caller keeps the owner alive."""
    buffer = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    return np.ndarray(array.shape, array.dtype, memoryview(buffer))


def _shared_memory_free() -> int:
    try:
        disk = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize
