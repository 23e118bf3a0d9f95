"""Where the parts of a batch end up on the device, with bytes of the host that stand in for its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unified_backend.engines.uploads import DeviceArray, Uploads
from unified_backend.tensors import Array

BATCH, SPARE = 1000, 9000  # addresses: of the batch, and of tensors that are on the device already
ROW = 3 * 4


class Memory:
    """Copies at once, in place of a stream's order."""

    def __init__(self) -> None:
        self.bytes = np.zeros(1 << 16, np.uint8)
        self.copies = 0

    def to_device(self, address: int, array: Array, size: int, stream: Any) -> None:
        self.bytes[address : address + size] = np.frombuffer(array.tobytes()[:size], np.uint8)
        self.copies += 1

    def on_device(self, target: int, source: int, size: int, stream: Any) -> None:
        self.bytes[target : target + size] = self.bytes[source : source + size]

    def rows(self, count: int) -> Array:
        return self.bytes[BATCH : BATCH + count * ROW].view(np.float32).reshape(count, 3)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def part(rows: int, seed: int) -> Array:
    return np.random.default_rng(seed).random((rows, 3), np.float32)


def on_device(memory: Memory, array: Array) -> DeviceArray:
    memory.bytes[SPARE : SPARE + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return DeviceArray(SPARE, array.shape, None)


def uploaded(memory: Memory, parts: list[Array | DeviceArray]) -> None:
    uploads = Uploads(memory, None, batched=True)  # type: ignore[arg-type]
    uploads.start(parts, np.zeros((16, 3), np.float32), BATCH, ROW)
    uploads.close()


def test_parts_lie_one_below_the_other_and_travel_in_one_copy(memory: Memory) -> None:
    parts = [part(2, 0), part(1, 1), part(3, 2)]
    uploaded(memory, [*parts])
    np.testing.assert_array_equal(memory.rows(6), np.concatenate(parts))
    assert memory.copies == 1


def test_large_parts_are_copied_by_several_threads(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_backend.engines.uploads._SPREAD_BYTES", 1)
    parts = [part(1, seed) for seed in range(13)]
    uploaded(memory, [*parts])
    np.testing.assert_array_equal(memory.rows(13), np.concatenate(parts))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_part_that_is_on_the_device_keeps_its_place(memory: Memory, place: int) -> None:
    parts = [part(2, 0), part(2, 1), part(1, 2)]
    given: list[Array | DeviceArray] = [*parts]
    given[place] = on_device(memory, parts[place])
    uploaded(memory, given)
    np.testing.assert_array_equal(memory.rows(5), np.concatenate(parts))


def test_without_a_batch_dimension_the_whole_is_copied(memory: Memory) -> None:
    array = part(4, 5)
    uploads = Uploads(memory, None, batched=False)  # type: ignore[arg-type]
    uploads.start([array], np.zeros((4, 3), np.float32), BATCH, array.nbytes)
    uploads.close()
    np.testing.assert_array_equal(memory.rows(4), array)
