"""CUDA as the engines need it, through cuda-python: one device's context, streams, memory, copies and graphs."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from unified_backend.errors import EngineError
from unified_backend.tensors import Array

__all__ = ["Cuda", "Event", "Graph", "Stream", "cuda_unusable"]

Stream = Any
Event = Any
Graph = Any


def cuda_unusable() -> str | None:
    """Why cuda-python cannot be used, or None."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "the package cuda-bindings is not installed"
    return None


class Cuda:
    """One GPU's primary context, which ONNX Runtime and TensorRT use too.

    Args:
        index: the device, among those that this process sees.

    Raises:
        EngineError: the driver refuses; as does every method.
    """

    def __init__(self, index: int) -> None:
        from cuda.bindings import driver

        self.index = index
        self._driver = driver
        self._call(driver.cuInit, 0)
        self._device = self._call(driver.cuDeviceGet, index)
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, self._device)

    def enter(self) -> None:
        """Make the context that of the calling thread; each thread does so before it calls anything else."""
        self._call(self._driver.cuCtxSetCurrent, self._context)

    def close(self) -> None:
        """Let the context go; the driver keeps it while anybody else holds it."""
        self._call(self._driver.cuDevicePrimaryCtxRelease, self._device)

    def stream(self) -> Stream:
        """A stream that does not wait for the default one."""
        return self._call(self._driver.cuStreamCreate, self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def event(self) -> Event:
        """An event without a time; who waits for it sleeps, and leaves the core to the others."""
        flags = self._driver.CUevent_flags
        return self._call(
            self._driver.cuEventCreate, flags.CU_EVENT_BLOCKING_SYNC.value | flags.CU_EVENT_DISABLE_TIMING.value
        )

    def record(self, event: Event, stream: Stream) -> None:
        """Let the event happen when all that was put on the stream so far is done."""
        self._call(self._driver.cuEventRecord, event, stream)

    def follow(self, stream: Stream, event: Event) -> None:
        """Let what is put on the stream from here on begin after the event."""
        self._call(self._driver.cuStreamWaitEvent, stream, event, 0)

    def wait(self, event: Event) -> None:
        """Sleep until the event has happened."""
        self._call(self._driver.cuEventSynchronize, event)

    def wait_for_stream(self, stream: Stream) -> None:
        """Sleep until all that was put on the stream is done."""
        self._call(self._driver.cuStreamSynchronize, stream)

    def memory(self, size: int) -> int:
        """The address of so many bytes on the device."""
        return int(self._call(self._driver.cuMemAlloc, max(1, size)))

    def free(self, address: int) -> None:
        """Give memory of the device back."""
        self._call(self._driver.cuMemFree, address)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array in page-locked memory of the host, filled with zeros; copies to and from it overlap with compute."""
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        address = self._call(self._driver.cuMemHostAlloc, size, 0)
        buffer = (ctypes.c_char * size).from_address(int(address))
        array: Array = np.ndarray(shape, dtype, memoryview(buffer))
        array[...] = 0
        return array

    def free_pinned(self, array: Array) -> None:
        """Give page-locked memory back; the array is not used afterwards."""
        self._call(self._driver.cuMemFreeHost, array.ctypes.data)

    def to_device(self, address: int, array: Array, size: int, stream: Stream) -> None:
        """Copy the first `size` bytes of an array of the host."""
        self._call(self._driver.cuMemcpyHtoDAsync, address, array.ctypes.data, size, stream)

    def to_host(self, array: Array, address: int, size: int, stream: Stream) -> None:
        """Copy `size` bytes of the device to the start of an array of the host."""
        self._call(self._driver.cuMemcpyDtoHAsync, array.ctypes.data, address, size, stream)

    def on_device(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy between two addresses of devices."""
        self._call(self._driver.cuMemcpyAsync, target, source, size, stream)

    def captured(self, work: Callable[[], None], stream: Stream) -> Graph:
        """What `work` puts on the stream, as a graph that is launched at once; nothing of it runs now."""
        driver = self._driver
        self._call(driver.cuStreamBeginCapture, stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(stream)  # or the stream takes nothing else; what went wrong is known
            raise
        graph = self._call(driver.cuStreamEndCapture, stream)
        try:
            return self._call(driver.cuGraphInstantiate, graph, 0)
        finally:
            self._call(driver.cuGraphDestroy, graph)

    def launch(self, graph: Graph, stream: Stream) -> None:
        """Put a captured graph on the stream."""
        self._call(self._driver.cuGraphLaunch, graph, stream)

    def free_graph(self, graph: Graph) -> None:
        """Give a captured graph back."""
        self._call(self._driver.cuGraphExecDestroy, graph)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            code, *values = function(*arguments)
        except RuntimeError as error:  # the driver is not there, or older than the function
            what = f"CUDA's {function.__name__} cannot be called"
            raise EngineError(what, " ".join(str(error).split()), "Install NVIDIA's driver, or a newer one") from None
        if code.value:
            name = self._driver.cuGetErrorName(code)[1].decode()
            text = self._driver.cuGetErrorString(code)[1].decode()
            raise EngineError(
                f"CUDA's {function.__name__} failed", f"{name}: {text}", "Compare `nvidia-smi` and the server's log"
            )
        return values[0] if values else None
