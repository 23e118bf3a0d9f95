"""A deserialised TensorRT engine: its tensors, profiles and execution contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified_backend.engines import Canonical
from unified_backend.engines.tensorrt_module import TRITON_TYPES, Log, load_plugins, module_of, validity
from unified_backend.errors import EngineError
from unified_backend.settings import Settings
from unified_backend.tensorrt_options import Profile, ShapeRange
from unified_backend.tensors import Signature, TensorSpec

__all__ = ["Plan"]

_OPEN = -1  # TensorRT's size of a dimension that is not fixed


class Plan:
    """A deserialised engine.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        path: the plan.

    Attributes:
        signature: of the canonical model; of a plan that somebody else built, the engine's own.
        profiles: what it was built for.

    Raises:
        EngineError: it is for another version or GPU, or the GPU has no memory for it.
    """

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
