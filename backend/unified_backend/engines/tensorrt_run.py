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
from unified_backend.engines.tensorrt_module import TRITON_TYPES, Log, load_plugins, module_of, validity
from unified_backend.errors import EngineError, RequestError
from unified_backend.settings import Settings
from unified_backend.tensorrt_options import Profile, ShapeRange
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["Opened", "open_plan"]

logger = logging.getLogger(__name__)

_OPEN = -1  # TensorRT's size of a dimension that is not fixed


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
    plan = _Plan(name, canonical, path, settings)
    stream = cuda.stream()
    size = canonical.max_batch_size
    alike = only_the_batch_varies(plan.signature, canonical.fixed, size, plan.profiles)
    rows = plan.rows(size) if alike else None
    if rows is None:
        return Opened(TensorRtRunner(cuda, stream, plan), takes_all=False)
    buckets = buckets_up_to(size, settings.batch_buckets) if size else ()
    engine = _Bound(cuda, stream, plan, rows)
    runner = DeviceRunner(cuda, stream, engine, plan.signature, rows, buckets, settings.contexts, settings.cuda_graph)
    runner.prepare()
    logger.info(
        "prepared model=%s gpu=%d buckets=%s contexts=%d cuda_graphs=%s",
        canonical.label,
        settings.gpu.index,
        ",".join(map(str, buckets)) or "none",
        settings.contexts,
        runner.graphs,
    )
    return Opened(runner, takes_all=True)


class _Plan:
    """A deserialised engine: its tensors and profiles."""

    def __init__(self, name: str, canonical: Canonical, path: Path, settings: Settings) -> None:
        self.trt = trt = module_of(name)
        self.log = Log(trt)
        load_plugins(trt, self.log, settings.tensorrt.plugins)
        self._runtime = trt.Runtime(self.log.sink)
        if settings.tensorrt.version_compatible:
            self._runtime.engine_host_code_allowed = True
        data = path.read_bytes()
        what = f"{canonical.label}: the plan does not run here"
        again = "Build it again with this version on such a GPU, or drop the ONNX model in its place"
        if reason := validity(trt, self._runtime, data):
            raise EngineError(what, reason, again)
        self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise EngineError(what, self.log.reason("TensorRT does not say why"), again)
        if settings.tensorrt.strip_plan and canonical.format == "onnx":
            self._refit(canonical)
        self.names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        self.signature = canonical.signature if canonical.format == "onnx" else self._signature()
        self.profiles = tuple(map(self._profile, range(self.engine.num_optimization_profiles)))
        self.log.forget()

    def context(self, profile: int, stream: Any, scratch: tuple[int, int] | None = None) -> Any:
        """An execution context in a profile.

        Args:
            scratch: address and size of memory for activations that others use too; None for memory of its own.

        Raises:
            EngineError: the GPU has no memory for it.
        """
        strategies = self.trt.ExecutionContextAllocationStrategy
        context = self.engine.create_execution_context(strategies.USER_MANAGED if scratch else strategies.STATIC)
        if context is None:
            why = self.log.reason("TensorRT does not say why")
            raise EngineError("no execution context could be made", why, "Lower max_batch_size, contexts or `shapes`")
        if scratch:
            context.set_device_memory(*scratch)
        if not context.set_optimization_profile_async(profile, int(stream)):
            raise EngineError(f"profile {profile} cannot be set", self.log.reason(""), "Build the engine again")
        return context

    def rows(self, max_batch_size: int) -> dict[str, tuple[int, ...]] | None:
        """The shape of one row of each input and output, or of the whole without a batch; None if one is not fixed."""
        first = 1 if max_batch_size else 0
        inputs = {one.name: one.most[first:] for one in self.profiles[0]}
        outputs = {}
        for spec in self.signature.outputs:
            shape = tuple(self.engine.get_tensor_shape(spec.name))
            if _OPEN in shape[first:] or (first and shape[:1] != (_OPEN,)):
                return None
            outputs[spec.name] = shape[first:]
        return {**inputs, **outputs}

    def free(self) -> None:
        """Let go of the engine."""
        del self.engine, self._runtime

    def _refit(self, canonical: Canonical) -> None:
        refitter = self.trt.Refitter(self.engine, self.log.sink)
        parser = self.trt.OnnxParserRefitter(refitter, self.log.sink)
        if not (parser.refit_from_file(str(canonical.path)) and refitter.refit_cuda_engine()):
            raise EngineError(
                f"{canonical.label}: the weights could not be put into the engine",
                self.log.reason("TensorRT does not say why"),
                "Build it with the parameter `strip_plan` off",
            )

    def _signature(self) -> Signature:
        sides: dict[bool, list[TensorSpec]] = {True: [], False: []}
        for name in self.names:
            own = self.engine.get_tensor_dtype(name).name
            if own not in TRITON_TYPES:
                raise EngineError(f"tensor {name} cannot be served", f"Triton has no type for {own}", "Build it anew")
            if self.engine.is_shape_inference_io(name):
                why = "its values are the shape of another tensor"
                raise EngineError(f"tensor {name} cannot be served", why, "Build it with that shape fixed")
            shape = tuple(None if size == _OPEN else int(size) for size in self.engine.get_tensor_shape(name))
            is_input = self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
            sides[is_input].append(TensorSpec(name, TRITON_TYPES[own], shape))
        return Signature(tuple(sides[True]), tuple(sides[False]))

    def _profile(self, number: int) -> Profile:
        ranges = []
        for spec in self.signature.inputs:
            shape = tuple(self.engine.get_tensor_shape(spec.name))
            sides = self.engine.get_tensor_profile_shape(spec.name, number) if _OPEN in shape else [shape] * 3
            ranges.append(ShapeRange(spec.name, *(tuple(dims) for dims in sides)))
        return tuple(ranges)


class _Bound:
    """An engine whose runs are bound to buffers at fixed addresses, all on one stream and in one scratch memory.

    A CUDA graph holds what its execution context was when it was captured: each batch size has a context of its own.
    """

    def __init__(self, cuda: Cuda, stream: Any, plan: _Plan, rows: Mapping[str, tuple[int, ...]]) -> None:
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

    def __init__(self, cuda: Cuda, stream: Any, plan: _Plan) -> None:
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


def _set(done: bool, plan: _Plan, name: str) -> None:
    """
    Raises:
        RequestError: TensorRT refuses a shape or an address.
    """
    if not done:
        raise RequestError(f"the model does not take this {name}", plan.log.reason("its shape"), "Check its shape")
