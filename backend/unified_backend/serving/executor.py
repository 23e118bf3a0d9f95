"""One `execute` call is one batch: requests in, one response each out, and no request harmed by another."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unified_backend.engines import Runner
from unified_backend.errors import EngineError, RequestError, UnifiedError
from unified_backend.serving.memory import LARGE_BYTES, Large, OutputSlots
from unified_backend.serving.transfer import device_reader, reader, writer
from unified_backend.tensors import Array

__all__ = ["Executor", "Feeds", "Plan"]

logger = logging.getLogger(__name__)

Feeds = dict[str, Array]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a model's requests are executed; decided once, at warm-up.

    Attributes:
        outputs: names of the outputs in config.pbtxt.
        max_batch_size: 0 for a model whose tensors have no batch dimension.
        concatenate: run a call's requests as one batch, not one by one.
        slow: one run takes long enough that asking whether a request was cancelled pays (it costs a round trip).
        gpu_inputs: inputs may lie on the GPU.
    """

    outputs: tuple[str, ...]
    max_batch_size: int
    concatenate: bool
    slow: bool
    gpu_inputs: bool = False


class Executor:
    """Answers the requests of one model instance.

    Args:
        pb_utils: Triton's module.
        runner: the engine.
        plan: how to execute.
        batch_sizes: counts the runs of each batch size.
        errors: counts the failed requests of each Triton error code.
    """

    def __init__(
        self,
        pb_utils: Any,
        runner: Runner,
        plan: Plan,
        batch_sizes: Counter[int],
        errors: Counter[str],
    ) -> None:
        self._pb_utils = pb_utils
        self._runner = runner
        self._plan = plan
        self._batch_sizes = batch_sizes
        self._errors = errors
        self._inputs = {spec.name: spec for spec in runner.signature.inputs}
        self._outputs = {spec.name: spec for spec in runner.signature.outputs if spec.name in plan.outputs}
        readers = device_reader if plan.gpu_inputs else reader
        self._readers: dict[str, Callable[[Any], Any]] = {spec.name: readers(spec) for spec in runner.signature.inputs}
        self._writers = {spec.name: writer(pb_utils, spec) for spec in runner.signature.outputs}
        self._slots = OutputSlots(pb_utils)
        self._large = Large(tuple(self._outputs.values()), runner.signature.inputs)
        self._buffers: dict[tuple[str, tuple[int, ...]], Array] = {}
        self._first_input = next(iter(self._inputs), "")
        self._batched = plan.max_batch_size > 0
        self._tensor, self._response = pb_utils.Tensor, pb_utils.InferenceResponse
        single = len(self._inputs) == len(plan.outputs) == 1 and all(
            spec.shape and spec.dtype not in ("STRING", "BYTES", "BF16")
            for spec in (*self._inputs.values(), *self._outputs.values())
        )
        self._answer = self._answer_single if single and not plan.slow else self._answer_any

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in their order; an error is that request's own."""
        if self._plan.concatenate and len(requests) > 1:
            return self._together(requests)
        answer = self._answer
        responses = []
        for position, request in enumerate(requests):
            try:
                responses.append(answer(position, request))
            except Exception as error:  # noqa: BLE001 - here one request's fault is kept from the others
                responses.append(self.failure(error))
        return responses

    def close(self) -> None:
        """Free what is kept between executions."""
        self._slots.clear()
        self._buffers.clear()

    def _answer_single(self, position: int, request: Any) -> Any:
        """The shortest way, for one input and one output of plain numbers.

        What a tiny model's request costs is mostly what happens here: measured in the stub, `_answer_any` takes 1.4
        times the processor time of a model.py that calls session.run for each request, and this no more than that.
        An output that turns out large ends it for this model.
        """
        tensors = request.inputs()
        if not tensors:
            raise self._missing({})
        given = tensors[0].as_numpy()
        array = self._runner.run({self._first_input: given}, self._plan.outputs)[0]
        if array.nbytes >= LARGE_BYTES:
            self._answer = self._answer_any
        self._batch_sizes[given.shape[0] if self._batched else 1] += 1
        return self._response([self._tensor(self._plan.outputs[0], array)])

    def _answer_any(self, position: int, request: Any) -> Any:
        """One request's response, whatever its types and sizes."""
        return self._answer_read(position, request, self.read(request))

    def _together(self, requests: Sequence[Any]) -> list[Any]:
        """Run the requests of equal row shapes as one batch; the rest, and those of a batch that fails, alone."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[Shapes, list[tuple[int, Feeds]]] = {}
        for position, request in enumerate(requests):
            try:
                feeds = self.read(request)
            except Exception as error:  # noqa: BLE001 - as above
                responses[position] = self.failure(error)
                continue
            shapes = tuple((name, array.shape[1:]) for name, array in sorted(feeds.items()))
            groups.setdefault(shapes, []).append((position, feeds))
        for group in groups.values():
            answers = self._batch_or_none(requests, group) if len(group) > 1 else None
            if answers is None:
                answers = [self._guarded(position, requests[position], feeds) for position, feeds in group]
            for (position, _), answer in zip(group, answers, strict=True):
                responses[position] = answer
        return responses

    def answer(self, request: Any, feeds: Feeds) -> Any:
        """The response to a request that was read, or its error."""
        return self._guarded(0, request, feeds)

    def response(self, request: Any, arrays: Mapping[str, Array]) -> Any:
        """The response to a request, made of outputs that are there."""
        try:
            return self._response([self._writers[name](arrays[name]) for name in self.wanted(request)])
        except Exception as error:  # noqa: BLE001 - here one request's fault is kept from the others
            return self.failure(error)

    def count(self, rows: int) -> None:
        """Count a batch that ran elsewhere."""
        self._batch_sizes[rows] += 1

    def _guarded(self, position: int, request: Any, feeds: Feeds) -> Any:
        try:
            return self._answer_read(position, request, feeds)
        except Exception as error:  # noqa: BLE001 - as above
            return self.failure(error)

    def read(self, request: Any) -> Feeds:
        """The request's inputs as the engine takes them.

        Raises:
            RequestError: it was cancelled, lacks an input, or an input cannot be converted.
        """
        if self._plan.slow and request.is_cancelled():
            raise _CancelledError("request cancelled", "the client gave it up before it ran", "Send it again if needed")
        feeds = {}
        for tensor in request.inputs():
            name = tensor.name()
            feeds[name] = self._readers[name](tensor)
        if len(feeds) < len(self._inputs):
            raise self._missing(feeds)
        return feeds

    def _missing(self, feeds: Feeds) -> RequestError:
        missing = ", ".join(name for name in self._inputs if name not in feeds)
        return RequestError(f"input {missing} is missing", "the model needs every input", "Send it with the request")

    def _answer_read(self, position: int, request: Any, feeds: Feeds) -> Any:
        wanted = self.wanted(request)
        targets = self._targets(position, feeds, wanted)
        arrays = self._run(feeds, wanted, targets)
        self._batch_sizes[self.rows(feeds)] += 1
        return self._response(
            [
                self._slots.tensor(position, name, array)
                if array.nbytes >= LARGE_BYTES and name in self._large.names
                else self._writers[name](array)
                for name, array in zip(wanted, arrays, strict=True)
            ]
        )

    def _run(self, feeds: Feeds, wanted: Sequence[str], targets: Mapping[str, Array]) -> list[Array]:
        if not targets:
            return self._runner.run(feeds, wanted)
        try:
            return self._runner.run(feeds, wanted, targets)
        except UnifiedError:
            # Either the request is bad, or the shape that the graph declares is not the one it computes.
            arrays = self._runner.run(feeds, wanted)
            self._large.names = frozenset()
            return arrays

    def _batch_or_none(self, requests: Sequence[Any], group: Sequence[tuple[int, Feeds]]) -> list[Any] | None:
        """The responses of a group run as one batch, or None: then each runs alone, so that only the culprit fails."""
        try:
            return self._batch(requests, group)
        except Exception as error:  # noqa: BLE001 - as above
            logger.info('batch run one by one requests=%d reason="%s"', len(group), error)
            return None

    def _batch(self, requests: Sequence[Any], group: Sequence[tuple[int, Feeds]]) -> list[Any] | None:
        """The responses of a group run as one batch; None if an output has not a row for each of its rows."""
        sizes = [self.rows(feeds) for _, feeds in group]
        total = sum(sizes)
        wanted = [self.wanted(requests[position]) for position, _ in group]
        names = [name for name in self._outputs if any(name in some for some in wanted)]
        feeds = {name: self._joined(name, [feeds[name] for _, feeds in group], total) for name in self._inputs}
        arrays = dict(zip(names, self._runner.run(feeds, names), strict=True))
        if any(array.shape[:1] != (total,) for array in arrays.values()):
            return None
        self._batch_sizes[total] += 1
        ends = np.cumsum(sizes).tolist()
        return [
            self._response([self._writers[name](arrays[name][end - size : end]) for name in some])
            for some, size, end in zip(wanted, sizes, ends, strict=True)
        ]

    def _joined(self, name: str, arrays: Sequence[Array], total: int) -> Array:
        """The arrays one below the other, in a buffer that the next batch uses again."""
        if self._inputs[name].numpy.kind == "O":
            return np.concatenate(arrays)
        key = (name, arrays[0].shape[1:])
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < total:
            if buffer is None and len(self._buffers) >= 4 * len(self._inputs):
                self._buffers.clear()  # ragged inputs: do not keep a buffer for every shape ever seen
            buffer = self._buffers[key] = np.empty((max(total, self._plan.max_batch_size), *key[1]), arrays[0].dtype)
        return np.concatenate(arrays, out=buffer[:total])

    def rows(self, feeds: Feeds) -> int:
        """The batch size of a request: the first dimension of any of its inputs."""
        return int(feeds[self._first_input].shape[0]) if self._batched else 1

    def wanted(self, request: Any) -> Sequence[str]:
        """Outputs to compute: those the client asked for, which Triton has checked against the config."""
        names = request.requested_output_names()
        return self._plan.outputs if len(names) == len(self._plan.outputs) or not names else names

    def _targets(self, position: int, feeds: Feeds, wanted: Sequence[str]) -> dict[str, Array]:
        targets = {}
        for name in self._large.names.intersection(wanted) if self._large.names else ():
            shape = self._large.shape(name, feeds)
            if shape is not None:
                target = self._slots.target(position, name, shape)
                if target is not None:
                    targets[name] = target
        return targets

    def failure(self, error: Exception) -> Any:
        """The error response of one request; what is not ours to foresee is logged with its traceback."""
        if not isinstance(error, UnifiedError):
            logger.error("request failed unexpectedly", exc_info=error)
            error = EngineError("inference failed", f"{type(error).__name__}: {error}", "The server's log has more")
        self._errors[error.triton_code] += 1
        code = getattr(self._pb_utils.TritonError, error.triton_code)
        return self._response(error=self._pb_utils.TritonError(str(error), code))


class _CancelledError(RequestError):
    """The client gave the request up."""

    triton_code = "CANCELLED"
