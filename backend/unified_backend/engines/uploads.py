"""Copies of a batch's parts to the GPU: through page-locked memory, spread over threads where they are large."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from unified_backend.engines.cuda import Cuda, Stream
from unified_backend.tensors import Array

__all__ = ["DeviceArray", "Uploads"]

_SPREAD_BYTES = 4 << 20  # a batch of more is copied by several threads: one moves about 8 GB a second
_COPIERS = 4


@dataclasses.dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous tensor in the memory of a GPU.

    Attributes:
        keep: what owns the memory: an OrtValue, or DALI's list of tensors.
    """

    address: int
    shape: tuple[int, ...]
    keep: Any

    def rows(self, begin: int, end: int, item: int) -> DeviceArray:
        """Some of its rows, in the same memory.

        Args:
            item: bytes of one element.
        """
        row = item * int(np.prod(self.shape[1:]))
        return DeviceArray(self.address + begin * row, (end - begin, *self.shape[1:]), self.keep)


class Uploads:
    """Starts copies to the device on one stream.

    Args:
        batched: tensors have a batch dimension.
    """

    def __init__(self, cuda: Cuda, stream: Stream, batched: bool) -> None:
        self._cuda, self._stream, self._batched = cuda, stream, batched
        self._copiers = ThreadPoolExecutor(min(_COPIERS, max(1, (os.cpu_count() or 1) // 2)), "unified-copy")

    def close(self) -> None:
        """End the threads."""
        self._copiers.shutdown()

    def start(self, parts: Sequence[Array | DeviceArray], staging: Array, address: int, row: int) -> None:
        """Start the copies of one input's parts, one below the other.

        Args:
            staging: page-locked memory of the whole batch.
            address: of the batch on the device.
            row: bytes of one row, or of the whole where there is no batch dimension.
        """
        copies: list[tuple[int, int, Array]] = []
        at = 0
        for part in parts:
            size = part.shape[0] if self._batched else 1
            if isinstance(part, DeviceArray):
                self._cuda.on_device(address + at * row, part.address, size * row, self._stream)
            else:
                copies.append((at, size, part))
            at += size
        if not copies:
            return
        self._stage(copies, staging)
        begin, end = copies[0][0], copies[-1][0] + copies[-1][1]
        if end - begin == sum(size for _, size, _ in copies):
            self._to_device(address, staging, begin, end - begin, row)
            return
        for at, size, _ in copies:  # parts that were on the device already lie between them
            self._to_device(address, staging, at, size, row)

    def _stage(self, copies: Sequence[tuple[int, int, Array]], staging: Array) -> None:
        def copy_all(some: Sequence[tuple[int, int, Array]]) -> None:
            for at, size, value in some:
                np.copyto(staging[at : at + size] if self._batched else staging, value)

        if len(copies) > 1 and sum(value.nbytes for *_, value in copies) > _SPREAD_BYTES:
            list(self._copiers.map(copy_all, [copies[start::_COPIERS] for start in range(_COPIERS)]))
        else:
            copy_all(copies)

    def _to_device(self, address: int, staging: Array, at: int, rows: int, row: int) -> None:
        source = staging[at:] if self._batched else staging
        self._cuda.to_device(address + at * row, source, rows * row, self._stream)
