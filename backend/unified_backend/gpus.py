"""The host's NVIDIA GPUs, asked through the driver's own library, and which of them a model instance gets."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Driver", "Gpu", "driver", "gpu_of", "gpu_of_instance", "why_none"]

# cuda.h
_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_DEVICES = Path("/dev")
_KIND_CPU = re.compile(r"^[^#\n]*\bkind\s*:\s*KIND_CPU\b", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: among those that this process sees (`CUDA_VISIBLE_DEVICES`).
        name: as its maker has it: `NVIDIA H100 80GB HBM3`.
        compute_capability: (major, minor).
    """

    index: int
    name: str
    compute_capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """`sm90`, as compilers name the compute capability."""
        return "sm{}{}".format(*self.compute_capability)


@dataclasses.dataclass(frozen=True)
class Driver:
    """What the driver's library says.

    Attributes:
        gpus: those there are.
        cuda: the newest CUDA version that the driver runs, as (major, minor); None without a driver that answers.
        why_none: why there is no GPU, or "".
        broken: devices are there and do not answer.
    """

    gpus: tuple[Gpu, ...] = ()
    cuda: tuple[int, int] | None = None
    why_none: str = ""
    broken: bool = False


@functools.cache
def driver() -> Driver:
    """The GPUs of this process; asked once, for a process that saw none sees none later."""
    devices = ", ".join(sorted(path.name for path in _DEVICES.glob("nvidia[0-9]*")))
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        if devices:
            return Driver(why_none=f"{devices} in /dev, but no libcuda.so.1", broken=True)
        return Driver(why_none="this host has no NVIDIA driver")
    if code := cuda.cuInit(0):
        if devices:
            return Driver(why_none=f"{devices} in /dev, but cuInit returned {code}", broken=True)
        return Driver(why_none=f"a driver library is there but sees no device (cuInit returned {code})")
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    newest = (version.value // 1000, version.value % 1000 // 10)
    gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    return Driver(gpus, newest, "" if gpus else "the driver sees no GPU")


def gpu_of(config: Mapping[str, Any]) -> Gpu | None:
    """The GPU that a model of this config, as the user wrote it, gets; the first, where several instances get several.

    Args:
        config: in Triton's JSON form.
    """
    groups = config.get("instance_group") or []
    if any(group.get("kind") == "KIND_CPU" for group in groups):
        return None
    numbers = [int(number) for group in groups for number in group.get("gpus") or []]
    return _numbered(numbers[0] if numbers else 0)


def gpu_of_instance(kind: str, device: str, model_dir: Path) -> Gpu | None:
    """The GPU of an instance that Triton started.

    The core makes KIND_CPU of an instance group that the user left open, as it does for every Python backend: only one
    that is written so keeps a model off the GPU.

    Args:
        kind, device: Triton's `model_instance_kind` and `model_instance_device_id`.
        model_dir: the model's folder, for its config.pbtxt.
    """
    if kind == "GPU":
        return _numbered(int(device))
    try:
        written = (model_dir / "config.pbtxt").read_text("utf-8", "replace")
    except OSError:
        written = ""
    return None if _KIND_CPU.search(written) else _numbered(0)


def why_none() -> str:
    """Why an instance has no GPU."""
    return driver().why_none or "the instance group is KIND_CPU"


def _numbered(index: int) -> Gpu | None:
    return next((gpu for gpu in driver().gpus if gpu.index == index), None)


def _gpu(cuda: Any, index: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    values = []
    for attribute in _COMPUTE_CAPABILITY:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        values.append(value.value)
    return Gpu(index, name.value.decode(errors="replace"), (values[0], values[1]))
