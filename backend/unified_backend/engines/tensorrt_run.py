"""A TensorRT engine that answers requests, on streams and memory of cuda-python."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.engines import Canonical, Runner
from unified_backend.engines.cuda import Cuda
from unified_backend.engines.device import DeviceRunner, buckets_up_to
from unified_backend.engines.profiles import bounds, fitting, only_the_batch_varies, shapes_of
from unified_backend.engines.tensorrt_plan import Plan
from unified_backend.errors import EngineError, RequestError
from unified_backend.settings import Settings
from unified_backend.tensors import Array

__all__ = ["Opened", "open_plan"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A runner, and whether it takes every shape that a request of the completed config can have."""

    runner: Runner
    takes_all: bool


def open_plan(name: str, canonical: Canonical, path: Path, settings: Settings) -> Opened:
    """Load a plan on the instance's GPU.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        path: the plan.

    Raises:
        EngineError: it is for another version or GPU, or the GPU has no memory for it.
    """
    assert settings.gpu is not None
    cuda = Cuda(settings.gpu.index)
    cuda.enter()
    plan = Plan(name, canonical, path, settings)
    stream = cuda.stream()
    size = canonical.max_batch_size
    alike = only_the_batch_varies(plan.signature, canonical.fixed, size, plan.profiles)
    rows = plan.rows(size) if alike else None
    if rows is None:
        return Opened(TensorRtRunner(cuda, stream, plan), takes_all=False)
    buckets = buckets_up_to(size, settings.batch_buckets) if size else ()
    engine = _Bound(cuda, stream, plan, rows)
    runner = DeviceRunner(cuda, stream, engine, plan.signature, rows, buckets, settings.contexts, settings.cuda_graph)
    try:
        runner.prepare()
    except EngineError:
        runner.close()
        raise
    logger.info(
        "prepared model=%s gpu=%d buckets=%s contexts=%d cuda_graphs=%s",
        canonical.label,
        settings.gpu.index,
        ",".join(map(str, runner.buckets)) or "none",
        settings.contexts,
        runner.graphs,
    )
    return Opened(runner, takes_all=True)


class _Bound:
    """An engine whose runs are bound to buffers at fixed addresses, all on one stream and in one scratch memory.

    A CUDA graph holds what its execution context was when it was captured: each batch size has a context of its own.
    """

    def __init__(self, cuda: Cuda, stream: Any, plan: Plan, rows: Mapping[str, tuple[int, ...]]) -> None:
        self._cuda, self._stream, self._plan, self._rows = cuda, stream, plan, rows
        size = int(plan.engine.device_memory_size_v2)
        self._scratch = (cuda.memory(size), max(1, size))

    def bind(
        self, rows: int, inputs: Mapping[str, int], outputs: Mapping[str, int], context: int
    ) -> Callable[[], None]:
        """See `Bindable.bind`."""
        shapes = {name: (rows, *self._rows[name]) if rows else self._rows[name] for name in inputs}
        profile = fitting(self._plan.profiles, shapes)
        assert profile is not None  # `only_the_batch_varies` has seen that one holds every batch
        execution = self._plan.context(profile, self._stream, self._scratch)
        for name, shape in shapes.items():
            _set(execution.set_input_shape(name, shape), self._plan, name)
        for name, address in (*inputs.items(), *outputs.items()):
            _set(execution.set_tensor_address(name, address), self._plan, name)
        stream = int(self._stream)

        def run() -> None:
            if not execution.execute_async_v3(stream):
                why = self._plan.log.reason("TensorRT does not say why")
                raise EngineError("TensorRT failed on the GPU", why, "See the server's log")

        return run

    def close(self) -> None:
        """Free the scratch memory and the engine."""
        self._cuda.free(self._scratch[0])
        self._plan.free()


class TensorRtRunner:
    """An engine for shapes that vary; one request after the other.

    Args:
        cuda: the device.
        stream: that everything is put on.
        plan: the engine.
    """

    def __init__(self, cuda: Cuda, stream: Any, plan: Plan) -> None:
        self.signature = plan.signature
        self._cuda, self._stream, self._plan = cuda, stream, plan
        self._contexts = [plan.context(number, stream) for number in range(len(plan.profiles))]
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address and size
        self._outputs = {spec.name: spec for spec in plan.signature.outputs}
        self._grown = {name: _taker(plan.trt, self._room) for name in self._outputs}

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        self._cuda.enter()
        profile = fitting(self._plan.profiles, shapes_of(feeds))
        if profile is None:
            found = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise RequestError(f"no profile holds {found}", bounds(self._plan.profiles), "Send another shape")
        context = self._contexts[profile]
        for name, array in feeds.items():
            address = self._room(name, array.nbytes)
            self._cuda.to_device(address, array, array.nbytes, self._stream)
            _set(context.set_input_shape(name, array.shape), self._plan, name)
            _set(context.set_tensor_address(name, address), self._plan, name)
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            why = self._plan.log.reason(" ".join(str(error).split()))
            raise RequestError("the model does not take these shapes", why, "Check them against the model") from None
        if missing:
            raise EngineError("TensorRT cannot tell the shapes", f"{missing[0]} is not set", "Report the model")
        for name, taker in self._grown.items():
            context.set_output_allocator(name, taker)
        if not context.execute_async_v3(int(self._stream)):
            why = self._plan.log.reason("TensorRT does not say why")
            raise EngineError("TensorRT failed on the GPU", why, "Give it more memory, or see the server's log")
        self._cuda.wait_for_stream(self._stream)
        answers = [self._answer(name, (into or {}).get(name)) for name in outputs]
        self._cuda.wait_for_stream(self._stream)
        return answers

    def close(self) -> None:
        """Free buffers and engine."""
        self._cuda.enter()
        self._cuda.wait_for_stream(self._stream)
        self._contexts.clear()
        self._plan.free()
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        self._cuda.close()

    def _answer(self, name: str, target: Array | None) -> Array:
        spec, taker = self._outputs[name], self._grown[name]
        array: Array = np.empty(taker.shape, spec.numpy) if target is None else target
        if array.shape != taker.shape:
            raise EngineError(f"{name} is {taker.shape}", f"memory for {array.shape} was given", "Report the model")
        if array.nbytes:
            self._cuda.to_host(array, self._buffers[name][0], array.nbytes, self._stream)
        return array

    def _room(self, name: str, size: int) -> int:
        """The address of at least so many bytes for a tensor, kept from run to run."""
        address, there = self._buffers.get(name, (0, 0))
        if address and there >= size:
            return address
        if address:  # the driver frees it when nothing uses it any more
            del self._buffers[name]
            self._cuda.free(address)
        self._buffers[name] = (self._cuda.memory(size), max(1, size))
        return self._buffers[name][0]


def _taker(trt: Any, room: Callable[[str, int], int]) -> Any:
    """What gives an output its memory when TensorRT knows its size, which may be after the run has begun.

    Returns:
        the object for TensorRT; its `shape` is that of the last run's output.
    """

    class Taker(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            try:
                return room(name, size)
            except EngineError as error:  # through TensorRT no exception passes: it fails, and says so
                logger.warning('no memory for an output name="%s" bytes=%d reason="%s"', name, size, error.why)
                return 0

        def notify_shape(self, name: str, shape: Sequence[int]) -> None:
            self.shape = tuple(shape)

    return Taker()


def _set(done: bool, plan: Plan, name: str) -> None:
    """
    Raises:
        RequestError: TensorRT refuses a shape or an address.
    """
    if not done:
        raise RequestError(f"the model does not take this {name}", plan.log.reason("its shape"), "Check its shape")
