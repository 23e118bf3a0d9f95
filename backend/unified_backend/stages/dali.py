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
    "MOST_PIXELS",
    "DeviceRows",
    "Pipeline",
    "Ran",
    "arguments",
    "dali_reason",
    "on_device",
    "on_host",
    "require_dali",
    "samples_of",
    "too_large",
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


MOST_PIXELS = 64_000_000  # 8000 x 8000: 192 MB decoded; the largest cameras' files pass, bombs do not


def too_large(content: bytes, most: int = MOST_PIXELS) -> str | None:
    """Why a file is too large to be decoded, by its header; None if it is not, or no picture."""
    from nvidia import nvimgcodec

    try:
        header = nvimgcodec.CodeStream(content)
        width, height = int(header.width), int(header.height)
    except RuntimeError:
        return None
    return f"it has {width} x {height} pixels, and {most} are allowed" if width * height > most else None


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
    text = re.sub(
        r"\[/[^\]]*\]\s*", "", re.sub(r"(?s)\n(Stacktrace|C\+\+ context|Current pipeline object).*", "", text)
    )
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
    """`Rows` with arrays on the GPU among them; they are whole when this is there."""

    arrays: Mapping[str, Any]
    failed: Mapping[int, RequestError] = dataclasses.field(default_factory=dict)


class Pipeline:
    """A pipeline that is built, and built again after each failure.

    A pipeline that failed takes further batches only by luck: what other operators had queued for the batch that failed
    is still there (DALI 2.4: "Unknown error" on each later run of one with two external sources).

    Args:
        make: makes DALI's pipeline, not yet built.
        label: the model, for messages.
    """

    def __init__(self, make: Callable[[], Any], label: str) -> None:
        """
        Raises:
            EngineError: DALI does not build it.
        """
        self._make, self._label = make, label
        self._pipeline = self._built()

    def run(self, feeds: Mapping[str, Sequence[Array]]) -> Ran:
        """Run a batch; where it fails, each sample alone, and then those that pass once more together.

        Args:
            feeds: name of an external source -> an array for each sample.
        """
        count = len(next(iter(feeds.values())))
        outputs, reason = self._once(feeds)
        if outputs is not None:
            return Ran(outputs, {})
        if count == 1:
            return Ran(None, {0: reason})
        alone = ({name: [rows[row]] for name, rows in feeds.items()} for row in range(count))
        failed = {row: why for row, (made, why) in enumerate(map(self._once, alone)) if made is None}
        good = [row for row in range(count) if row not in failed]
        if not failed:
            raise EngineError(
                f"{self._label}: DALI failed on a batch",
                f"each of its samples alone passes; of all: {reason}",
                "Send less",
            )
        if not good:
            return Ran(None, failed)
        again = self.run({name: [rows[row] for row in good] for name, rows in feeds.items()})
        return Ran(again.outputs, failed | {good[row]: why for row, why in again.failed.items()})

    def close(self) -> None:
        """Free its threads and memory."""
        self._pipeline = None

    def _once(self, feeds: Mapping[str, Sequence[Array]]) -> tuple[Sequence[Any] | None, str]:
        """The outputs, or None and DALI's reason."""
        try:
            return self._pipeline.run(**{name: list(rows) for name, rows in feeds.items()}), ""
        except RuntimeError as error:
            self._pipeline = None
            self._pipeline = self._built()
            return None, dali_reason(error)

    def _built(self) -> Any:
        try:
            pipeline = self._make()
            pipeline.build()
            return pipeline
        except Exception as error:
            raise EngineError(
                f"{self._label}: DALI does not build the pipeline", dali_reason(error), "Correct what it names"
            ) from error


def on_host(tensors: Any) -> Array | None:
    """A list of tensors as one array of its own, or None if their shapes differ."""
    if not tensors.is_dense_tensor():
        return None
    host = tensors.as_cpu() if hasattr(tensors, "as_cpu") else tensors
    return np.array(host.as_tensor())


def samples_of(tensors: Any) -> list[Array]:
    """Each sample of a list of tensors as an array of its own, whatever their shapes."""
    return [np.array(sample) for sample in (tensors.as_cpu() if hasattr(tensors, "as_cpu") else tensors)]


def on_device(tensors: Any) -> DeviceArray | Array | None:
    """A list of tensors as one where it is: on the GPU, whole while that is referenced, or on the host.

    Returns:
        None if their shapes differ.
    """
    from nvidia.dali.backend import TensorListGPU

    if not isinstance(tensors, TensorListGPU):
        return on_host(tensors)
    if not tensors.is_dense_tensor():
        return None
    tensor = tensors.as_tensor()
    return DeviceArray(int(tensor.data_ptr()), tuple(tensor.shape()), (tensors, tensor))
