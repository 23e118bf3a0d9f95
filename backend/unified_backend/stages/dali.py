"""NVIDIA DALI as the stages use it: one pipeline, run on batches, with an error for each sample that it refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unified_backend.engines.uploads import DeviceArray
from unified_backend.errors import ConfigError, EngineError, RequestError
from unified_backend.gpus import Gpu
from unified_backend.tensors import Array

__all__ = [
    "DeviceRows",
    "Pipeline",
    "Ran",
    "arguments",
    "dali_reason",
    "on_device",
    "on_host",
    "require_dali",
]

# nvimgcodec.h, nvimgcodecStatus_t: of a failed decode DALI passes on the number alone.
_STATUS = {
    3: "the file is damaged",
    4: "it is no image of a kind that can be decoded (JPEG, PNG, TIFF, WebP, BMP, PNM, JPEG 2000)",
    9: "no decoder takes this variant of its format",
    13: "the file is damaged",
    14: "no decoder takes this variant of its format",
    17: "the file is damaged or cut short",
    18: "no decoder takes this variant of its format",
    19: "the file is cut short",
}
_NUMBER = re.compile(r"nvImageCodec failure: '#(\d+)'")
_UNTOLD = re.compile(r"Failed to decode sample #\d+ *: *$")


def require_dali(label: str, user: str) -> None:
    """
    Args:
        user: what asks for it, for the message.

    Raises:
        ConfigError: DALI is not installed.
    """
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise ConfigError(
            f"{label}: {user} cannot be used",
            "NVIDIA DALI is not installed",
            "Install it: pip install 'triton-unified-backend[dali]', or nvidia-dali-cuda130 itself",
        )


def arguments(max_batch_size: int, threads: int, gpu: Gpu | None) -> dict[str, Any]:
    """What a pipeline is built with: no prefetching, because a batch is there only when it is asked for."""
    return {
        "batch_size": max(1, max_batch_size),
        "num_threads": max(1, threads),
        "device_id": None if gpu is None else gpu.index,
        "prefetch_queue_depth": 1,
    }


def dali_reason(error: BaseException) -> str:
    """What DALI says in one line, without its stack and without where the pipeline was defined."""
    text = str(error)
    if match := _NUMBER.search(text):
        return _STATUS.get(int(match[1]), f"nvImageCodec failed with status {match[1]}")
    text = text.rpartition("encountered:")[2]
    text = re.sub(r"\[/[^\]]*\]\s*", "", re.sub(r"(?s)\n(Stacktrace|Current pipeline object).*", "", text))
    text = re.sub(r"(?s)Assert on .*? failed: ", "", " ".join(text.split()))
    if not text or _UNTOLD.search(text):
        return "the file is damaged or cut short"
    return text[:300].rstrip(". ")


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a pipeline made of a batch.

    Attributes:
        outputs: DALI's lists of tensors, in the pipeline's order; None where no sample passed.
        failed: index of a sample -> DALI's reason.
    """

    outputs: Sequence[Any] | None
    failed: Mapping[int, str]


@dataclasses.dataclass(frozen=True)
class DeviceRows:
    """`Rows` whose arrays are on the GPU; they are whole when this is there."""

    arrays: Mapping[str, DeviceArray]
    failed: Mapping[int, RequestError] = dataclasses.field(default_factory=dict)


class Pipeline:
    """A pipeline that is built.

    Args:
        make: makes DALI's pipeline, not yet built.
        label: the model, for messages.
    """

    def __init__(self, make: Callable[[], Any], label: str) -> None:
        """
        Raises:
            EngineError: DALI does not build it.
        """
        try:
            self._pipeline = make()
            self._pipeline.build()
        except Exception as error:
            raise EngineError(
                f"{label}: DALI does not build the pipeline", dali_reason(error), "Correct what it names"
            ) from error

    @property
    def dali(self) -> Any:
        """DALI's own object."""
        return self._pipeline

    def run(self, feeds: Mapping[str, Sequence[Array]]) -> Ran:
        """Run a batch; where it fails, each sample alone, and then those that pass once more together.

        Args:
            feeds: name of an external source -> an array for each sample.
        """
        try:
            return Ran(self._pipeline.run(**{name: list(rows) for name, rows in feeds.items()}), {})
        except RuntimeError as error:
            count = len(next(iter(feeds.values()), ()))
            failed = {0: dali_reason(error)} if count == 1 else {}
        for row in range(count) if count > 1 else ():
            try:
                self._pipeline.run(**{name: [rows[row]] for name, rows in feeds.items()})
            except RuntimeError as error:
                failed[row] = dali_reason(error)
        good = [row for row in range(count) if row not in failed]
        if not good:
            return Ran(None, failed)
        if not failed:
            raise EngineError("DALI failed on a batch", "each of its samples alone passes", "Send them one by one")
        again = self.run({name: [rows[row] for row in good] for name, rows in feeds.items()})
        return Ran(again.outputs, failed | {good[row]: why for row, why in again.failed.items()})

    def close(self) -> None:
        """Free its threads and memory."""
        self._pipeline = None


def on_host(tensors: Any) -> Array | None:
    """A list of tensors as one array of its own, or None if their shapes differ."""
    if not tensors.is_dense_tensor():
        return None
    host = tensors.as_cpu() if hasattr(tensors, "as_cpu") else tensors
    return np.array(host.as_tensor())


def on_device(tensors: Any) -> DeviceArray | None:
    """A list of tensors on the GPU as one, or None if their shapes differ; it stays whole while that is referenced."""
    if not tensors.is_dense_tensor():
        return None
    tensor = tensors.as_tensor()
    return DeviceArray(int(tensor.data_ptr()), tuple(tensor.shape()), (tensors, tensor))
