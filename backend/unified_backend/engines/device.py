"""Batches on a GPU: page-locked staging, copies that overlap with compute, and a CUDA graph for each batch size.

A model whose shapes are fixed but for the batch runs in *contexts*: buffers at fixed addresses, one batch in flight in
each. Batches are padded to a few sizes, the buckets, so that libraries which search an algorithm for each new shape do
so at warm-up and never under traffic.
"""

from __future__ import annotations

import bisect
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from unified_backend.engines.cuda import Cuda, Graph
from unified_backend.engines.uploads import DeviceArray, Uploads
from unified_backend.errors import EngineError
from unified_backend.tensors import Array, Signature

__all__ = ["Bindable", "DeviceArray", "DeviceRunner", "Pending", "buckets_up_to"]

logger = logging.getLogger(__name__)

_TIMED = 3  # runs that a bucket is timed by


class Bindable(Protocol):
    """An engine that runs on buffers at fixed addresses."""

    def bind(
        self, rows: int, inputs: Mapping[str, int], outputs: Mapping[str, int], context: int
    ) -> Callable[[], None]:
        """A function that puts one run on the compute stream.

        Args:
            rows: batch size; of a model without a batch dimension 0.
            inputs, outputs: name -> address.
            context: number of the context; runs of one are never in flight together.
        """
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


def buckets_up_to(largest: int, chosen: Sequence[int] = ()) -> tuple[int, ...]:
    """The batch sizes that batches are padded to, ascending: those chosen, else a series; and the largest.

    The series is of powers of two, and of the sizes half-way between them from 8 on: with these, clients that kept 64
    requests in flight got 1.1 to 1.6 times as many answers (ResNet-50 on an H100, FP16 and TF32).
    """
    powers = [2**power for power in range(largest.bit_length())]
    sizes = chosen or [*powers, *(3 * power // 2 for power in powers if power >= 8)]
    return tuple(sorted({size for size in sizes if 0 < size < largest} | {largest}))


@dataclasses.dataclass
class _Context:
    """Buffers of the largest batch, and what is bound to them."""

    number: int
    staging: dict[str, Array]
    results: dict[str, Array]
    inputs: dict[str, int]
    outputs: dict[str, int]
    copied: Any
    computed: Any
    done: Any
    runs: dict[int, Callable[[], None]] = dataclasses.field(default_factory=dict)
    graphs: dict[int, Graph] = dataclasses.field(default_factory=dict)


class Pending:
    """A batch in flight."""

    def __init__(self, runner: DeviceRunner, context: _Context, rows: int) -> None:
        self._runner, self._context, self._rows = runner, context, rows

    def wait(self) -> dict[str, Array]:
        """The outputs, in memory that is good until `release`.

        Raises:
            EngineError: the GPU failed.
        """
        cuda = self._runner.cuda
        cuda.enter()
        cuda.wait(self._context.done)
        results = self._context.results
        return {name: array[: self._rows] if self._rows else array for name, array in results.items()}

    def on_device(self, name: str, begin: int, rows: int) -> DeviceArray:
        """Rows of an output in memory of their own on the GPU; after `wait`."""
        return self._runner.copied(self._context, name, begin, rows)

    def release(self) -> None:
        """Let another batch use the memory."""
        self._runner.give_back(self._context)


class DeviceRunner:
    """Answers with an engine that runs on buffers at fixed addresses; see `Runner`.

    Args:
        cuda: the device.
        stream: that the engine computes on.
        engine: the engine.
        signature: inputs and outputs; all are numbers.
        rows: input and output name -> shape of one row, or of the whole where there is no batch.
        buckets: batch sizes, ascending; () without a batch dimension.
        contexts: batches in flight at most.
        graphs: capture a CUDA graph for each bucket.

    Raises:
        EngineError: the device has not the memory.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Any,
        engine: Bindable,
        signature: Signature,
        rows: Mapping[str, tuple[int, ...]],
        buckets: tuple[int, ...],
        contexts: int,
        graphs: bool,
    ) -> None:
        self.signature = signature
        self.buckets = buckets
        self.contexts = contexts
        self.graphs = graphs
        self.cuda, self._compute, self._engine = cuda, stream, engine
        self._upload, self._download = cuda.stream(), cuda.stream()
        self._rows = rows
        self._names = [spec.name for spec in signature.outputs]
        self._bytes = {
            spec.name: int(np.prod(rows[spec.name])) * spec.numpy.itemsize
            for spec in (*signature.inputs, *signature.outputs)
        }
        self._all = [self._context(number) for number in range(contexts)]
        self._free: queue.SimpleQueue[_Context] = queue.SimpleQueue()
        for context in self._all:
            self._free.put(context)
        self._launching = threading.Lock()
        self._uploads = Uploads(cuda, self._upload, batched=bool(buckets))

    def prepare(self) -> None:
        """Run every bucket in every context, and capture its graph: what is searched and allocated once is, now.

        A bucket that takes as long as the next larger one is left out: some sizes have no quick kernel (ResNet-50 in
        FP16 on an H100 ran no faster at 20 to 28 images than at 32). One size after the other, in all contexts: ONNX
        Runtime searches its convolutions again at each change of shape (EfficientNet-Lite0 on an H200: 2.5 s).
        """
        first, *others = self._all
        kept: list[int] = []
        quickest = float("inf")
        for bucket in reversed(self.buckets or (0,)):
            self._prepare(first, bucket)
            took = min(self._seconds(first, bucket) for _ in range(_TIMED))
            if took >= quickest:
                logger.info("left out batch=%d ms=%.2f larger_ms=%.2f", bucket, 1000 * took, 1000 * quickest)
                continue
            kept.append(bucket)
            quickest = took
            for context in others:
                self._prepare(context, bucket)
        if self.buckets:
            self.buckets = tuple(reversed(kept))

    def submit(self, parts: Sequence[Mapping[str, Array | DeviceArray]]) -> Pending:
        """Start a batch made of parts, one below the other; waits while as many batches are in flight as may be.

        Args:
            parts: the inputs of each, together at most the largest bucket.
        """
        context = self._free.get()
        try:
            return self._start(context, parts)
        except BaseException:
            self._free.put(context)
            raise

    def run(
        self, feeds: Mapping[str, Array | DeviceArray], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`. What is on the device has to fit into one batch."""
        rows = next(iter(feeds.values())).shape[0] if self.buckets else 0
        if self.buckets and (rows > self.buckets[-1] or rows == 0):
            here = {name: array for name, array in feeds.items() if not isinstance(array, DeviceArray)}
            return self._in_pieces(here, outputs, rows)
        pending = self.submit([feeds])
        try:
            found = pending.wait()
            answers = []
            for name in outputs:
                if into and name in into:
                    np.copyto(into[name], found[name])
                    answers.append(into[name])
                else:
                    answers.append(found[name].copy())
            return answers
        finally:
            pending.release()

    def give_back(self, context: _Context) -> None:
        """Let another batch use a context."""
        self._free.put(context)

    def copied(self, context: _Context, name: str, begin: int, rows: int) -> DeviceArray:
        """Rows of a finished batch's output, copied into memory of their own on the GPU."""
        import onnxruntime

        spec = next(spec for spec in self.signature.outputs if spec.name == name)
        shape = (rows, *self._rows[name]) if self.buckets else self._rows[name]
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, spec.numpy.type, "cuda", self.cuda.index)
        row = self._bytes[name]
        size = row * (rows if self.buckets else 1)
        self.cuda.on_device(value.data_ptr(), context.outputs[name] + begin * row, size, self._download)
        self.cuda.wait_for_stream(self._download)
        return DeviceArray(value.data_ptr(), shape, value._ortvalue)

    def close(self) -> None:
        """Free graphs, buffers and the engine."""
        self.cuda.enter()
        self.cuda.wait_for_stream(self._compute)
        self._uploads.close()
        for context in self._all:
            for graph in context.graphs.values():
                self.cuda.free_graph(graph)
            context.runs.clear()
        self._engine.close()
        for context in self._all:
            for address in (*context.inputs.values(), *context.outputs.values()):
                self.cuda.free(address)
            for array in (*context.staging.values(), *context.results.values()):
                self.cuda.free_pinned(array)
        self._all.clear()
        self.cuda.close()

    def _context(self, number: int) -> _Context:
        largest = self.buckets[-1] if self.buckets else 0
        staging, results, inputs, outputs = dict[str, Array](), dict[str, Array](), dict[str, int](), dict[str, int]()
        sides = ((self.signature.inputs, staging, inputs), (self.signature.outputs, results, outputs))
        for specs, arrays, addresses in sides:
            for spec in specs:
                shape = (largest, *self._rows[spec.name]) if self.buckets else self._rows[spec.name]
                arrays[spec.name] = self.cuda.pinned(shape, spec.numpy)
                addresses[spec.name] = self.cuda.memory(arrays[spec.name].nbytes)
        # What pads a batch are zeros at first, and rows of earlier batches later: never memory of another process.
        for name, array in staging.items():
            self.cuda.to_device(inputs[name], array, array.nbytes, self._upload)
        self.cuda.wait_for_stream(self._upload)
        events = [self.cuda.event() for _ in range(3)]
        return _Context(number, staging, results, inputs, outputs, *events)

    def _prepare(self, context: _Context, bucket: int) -> None:
        run = context.runs[bucket] = self._engine.bind(bucket, context.inputs, context.outputs, context.number)
        for _ in range(2):  # the first searches and allocates, the second settles where memory lies
            run()
            self.cuda.wait_for_stream(self._compute)
        if not self.graphs:
            return
        try:
            graph = context.graphs[bucket] = self.cuda.captured(run, self._compute)
            self.cuda.launch(graph, self._compute)
            self.cuda.wait_for_stream(self._compute)
        except EngineError as error:
            self.graphs = False
            logger.info('no CUDA graphs batch=%d reason="%s"', bucket, error.why)
            run()
            self.cuda.wait_for_stream(self._compute)

    def _seconds(self, context: _Context, bucket: int) -> float:
        """What one run of a bucket takes on the GPU."""
        began = time.perf_counter()
        self._launch(context, bucket)
        self.cuda.wait_for_stream(self._compute)
        return time.perf_counter() - began

    def _launch(self, context: _Context, bucket: int) -> None:
        graph = context.graphs.get(bucket)
        if graph is not None:
            self.cuda.launch(graph, self._compute)
        else:
            context.runs[bucket]()

    def _start(self, context: _Context, parts: Sequence[Mapping[str, Array | DeviceArray]]) -> Pending:
        cuda = self.cuda
        cuda.enter()
        first = next(iter(self._rows))
        rows = sum(part[first].shape[0] for part in parts) if self.buckets else 0
        for spec in self.signature.inputs:
            name = spec.name
            self._uploads.start(
                [part[name] for part in parts], context.staging[name], context.inputs[name], self._bytes[name]
            )
        bucket = self.buckets[bisect.bisect_left(self.buckets, rows)] if self.buckets else 0
        with self._launching:
            cuda.record(context.copied, self._upload)
            cuda.follow(self._compute, context.copied)
            self._launch(context, bucket)
            cuda.record(context.computed, self._compute)
            cuda.follow(self._download, context.computed)
            for name in self._names:
                size = self._bytes[name] * (rows or 1)
                cuda.to_host(context.results[name], context.outputs[name], size, self._download)
            cuda.record(context.done, self._download)
        return Pending(self, context, rows)

    def _in_pieces(self, feeds: Mapping[str, Array], outputs: Sequence[str], rows: int) -> list[Array]:
        """A batch that is larger than the largest bucket, or empty."""
        if not rows:
            specs = {spec.name: spec for spec in self.signature.outputs}
            return [np.empty((0, *self._rows[name]), specs[name].numpy) for name in outputs]
        step = self.buckets[-1]
        pieces = [
            self.run({name: array[at : at + step] for name, array in feeds.items()}, outputs)
            for at in range(0, rows, step)
        ]
        return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]
