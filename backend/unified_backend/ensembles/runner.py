"""A pipeline in one process: its steps run one after the other on the samples of all requests, tensors by reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unified_backend.engines import EachRunner, run_one
from unified_backend.errors import EngineError, RequestError, UnifiedError
from unified_backend.formats.pipeline import Compiled, CompiledStep
from unified_backend.spent import Spent
from unified_backend.stages import Stage
from unified_backend.stages.python_function import PythonStage
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["Member", "PipelineRunner"]


@dataclasses.dataclass(frozen=True)
class Member:
    """A model of the pipeline, loaded.

    Attributes:
        max_batch_size: 0 for one without a batch dimension.
    """

    runner: EachRunner
    max_batch_size: int


class _Sample:
    """One sample of a request on its way: the tensors that it has so far, or why it goes no further."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self.tensors = tensors
        self.error: UnifiedError | None = None


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Requests that were split into samples, with the steps before the first model done.

    Attributes:
        sizes: samples of each request.
        done: steps that are done.
    """

    sizes: Sequence[int]
    samples: Sequence[_Sample]
    done: int


class PipelineRunner:
    """Answers with a pipeline; see `EachRunner`.

    Rows of one batch may be samples or items of samples: what a model gets are the rows of all requests together, up to
    its largest batch, and each request gets its own back.

    Args:
        pipeline: what is run.
        stages: of the steps that are stages, by their number.
        members: of the steps that are models.
    """

    def __init__(self, pipeline: Compiled, stages: Mapping[int, Stage], members: Mapping[int, Member]) -> None:
        self.signature: Signature = pipeline.signature
        self._pipeline, self._stages, self._members = pipeline, stages, members
        self._apart = set[int]()
        self.spent = Spent()  # by the names of steps

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs for one request; see `Runner.run`."""
        return run_one(self, feeds, outputs, into)

    def prepare(self, requests: Sequence[Mapping[str, Array]]) -> _Prepared:
        """Split requests into samples, and run the stages before the first model on them."""
        samples, sizes = list[_Sample](), list[int]()
        for feeds in requests:
            if self._pipeline.max_batch_size:
                rows = range(len(feeds[self._pipeline.inputs[0]]))
                samples += [_Sample({name: array[row : row + 1] for name, array in feeds.items()}) for row in rows]
                sizes.append(len(rows))
            else:
                samples.append(_Sample(dict(feeds)))
                sizes.append(1)
        done = 0
        while done in self._stages:
            with self.spent.on(str(self._pipeline.steps[done])):
                self._run(done, samples)
            done += 1
        return _Prepared(sizes, samples, done)

    def finish(self, prepared: _Prepared, outputs: Sequence[str]) -> list[dict[str, Array] | UnifiedError]:
        """Run the other steps, and put the answers together."""
        for number in range(prepared.done, len(self._pipeline.steps)):
            with self.spent.on(str(self._pipeline.steps[number])):
                self._run(number, prepared.samples)
        answers: list[dict[str, Array] | UnifiedError] = []
        begin = 0
        for size in prepared.sizes:
            answers.append(self._answer(prepared.samples[begin : begin + size], outputs))
            begin += size
        return answers

    def close(self) -> None:
        """Free all parts."""
        for stage in self._stages.values():
            stage.close()
        for runner in {id(member.runner): member.runner for member in self._members.values()}.values():
            runner.close()

    def _answer(self, samples: Sequence[_Sample], outputs: Sequence[str]) -> dict[str, Array] | UnifiedError:
        """One request's outputs, those of its samples one below the other; its first error if it has one."""
        for number, sample in enumerate(samples):
            if sample.error:
                if len(samples) == 1:
                    return sample.error
                error = sample.error
                return type(error)(f"sample {number} of {len(samples)}: {error.what}", error.why, error.do)
        names = [(output, self._pipeline.outputs[output]) for output in outputs]
        try:
            return {output: _joined([sample.tensors[tensor] for sample in samples]) for output, tensor in names}
        except ValueError as error:
            return RequestError(
                "the answers to the samples of this request have not the same shape", str(error), "Send them apart"
            )

    def _run(self, number: int, samples: Sequence[_Sample]) -> None:
        step = self._pipeline.steps[number]
        alive = [sample for sample in samples if sample.error is None]
        if number not in self._stages:
            self._modelled(step, self._members[number], alive)
            return
        stage = self._stages[number]
        if len(alive) > 1 and number not in self._apart and not isinstance(stage, PythonStage):
            if self._staged_together(step, stage, alive):
                return
            self._apart.add(number)  # its samples have different shapes, and will have again
        for sample in alive:
            _guarded(sample, lambda sample=sample: self._staged(step, stage, sample))  # type: ignore[misc]

    def _staged_together(self, step: CompiledStep, stage: Stage, samples: Sequence[_Sample]) -> bool:
        """A stage that takes batches on all samples; whether it could, for what it gives must be one array."""
        try:
            each = [self._feeds(step, stage.signature.inputs, sample) for sample in samples]
            rows = stage.run({name: np.concatenate([feeds[name] for feeds in each]) for name in each[0]})
        except (UnifiedError, ValueError):
            return False
        passed = 0
        for place, sample in enumerate(samples):
            if place in rows.failed:
                sample.error = rows.failed[place]
                continue
            for own, name in step.outputs.items():
                sample.tensors[name] = rows.arrays[own][passed : passed + 1]
            passed += 1
        return True

    def _staged(self, step: CompiledStep, stage: Stage, sample: _Sample) -> None:
        rows = stage.run(self._feeds(step, stage.signature.inputs, sample))
        if rows.failed:
            raise rows.failed[min(rows.failed)]
        items = [own for own, name in step.outputs.items() if self._pipeline.tensors[name].items is not None]
        counts = {own: len(rows.arrays[own]) for own in items}
        if len(set(counts.values())) > 1:
            raise EngineError(
                f"the stage {step} answered otherwise than a stage has to",
                f"its outputs have different numbers of items: {', '.join(f'{n} {c}' for n, c in counts.items())}",
                "Return one row for each item in all of them",
            )
        for own, name in step.outputs.items():
            sample.tensors[name] = rows.arrays[own]

    def _modelled(self, step: CompiledStep, member: Member, samples: Sequence[_Sample]) -> None:
        """A model on the rows of all samples: batches up to its largest, cut where one sample alone has more."""
        pieces: list[tuple[_Sample, dict[str, Array]]] = []
        specs = member.runner.signature.inputs
        for sample in samples:
            try:
                feeds = self._feeds(step, specs, sample)
            except RequestError as error:
                sample.error = error
                continue
            rows = len(next(iter(feeds.values())))
            largest = member.max_batch_size or max(rows, 1)
            pieces += [
                (sample, {name: array[at : at + largest] for name, array in feeds.items()})
                for at in range(0, rows, largest)
            ]
        made: dict[int, list[dict[str, Array]]] = {id(sample): [] for sample in samples}
        for chunk in _chunks(pieces, member.max_batch_size):
            answers = _answers(member.runner, [feeds for _, feeds in chunk], list(step.outputs))
            for (sample, _), answer in zip(chunk, answers, strict=True):
                if isinstance(answer, UnifiedError):
                    sample.error = type(answer)(f"{step}: {answer.what}", answer.why, answer.do)
                else:
                    made[id(sample)].append(answer)
        for sample in samples:
            if sample.error is None:
                parts = made[id(sample)]
                for own, name in step.outputs.items():
                    sample.tensors[name] = _joined([part[own] for part in parts]) if parts else self._nothing(name)

    def _feeds(self, step: CompiledStep, specs: Sequence[TensorSpec], sample: _Sample) -> dict[str, Array]:
        names = {spec: step.inputs[spec.name] for spec in specs}
        return {spec.name: self._as(spec, sample.tensors[name], name) for spec, name in names.items()}

    def _nothing(self, name: str) -> Array:
        """A tensor of no items."""
        spec = self._pipeline.tensors[name].spec(name)
        shape = [size if isinstance(size, int) else 0 for size in (spec.shape or (0,))[1:]]
        return np.empty((0, *shape), spec.numpy)

    def _as(self, spec: TensorSpec, array: Array, name: str) -> Array:
        """A tensor as a step takes it: text and bytes are one type to Triton."""
        given = self._pipeline.tensors[name].dtype
        if {given, spec.dtype} != {"BYTES", "STRING"}:
            return array
        if spec.dtype == "BYTES":
            return _each(array, lambda one: str(one).encode())
        try:
            return _each(array, bytes.decode)
        except UnicodeDecodeError as error:
            raise RequestError(f'"{name}" is not UTF-8', str(error), "Send text as UTF-8") from None


def _guarded(sample: _Sample, work: Callable[[], None]) -> None:
    try:
        work()
    except UnifiedError as error:
        sample.error = error
    except Exception as error:  # noqa: BLE001 - one sample's fault is kept from the others
        sample.error = EngineError("a stage failed", f"{type(error).__name__}: {error}", "The server's log has more")


def _answers(
    runner: EachRunner, requests: Sequence[Mapping[str, Array]], outputs: Sequence[str]
) -> Sequence[dict[str, Array] | UnifiedError]:
    try:
        return runner.finish(runner.prepare(requests), outputs)
    except UnifiedError as error:
        return [error] * len(requests)


def _chunks(
    pieces: Sequence[tuple[_Sample, dict[str, Array]]], largest: int
) -> list[list[tuple[_Sample, dict[str, Array]]]]:
    """Pieces in their order, cut where a batch would become too large; alone for a model without a batch."""
    chunks: list[list[tuple[_Sample, dict[str, Array]]]] = []
    size = 0
    for piece in pieces:
        rows = len(next(iter(piece[1].values())))
        if not chunks or size + rows > largest:
            chunks.append([])
            size = 0
        chunks[-1].append(piece)
        size += rows
    return chunks


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _each(array: Array, change: Callable[[Any], object]) -> Array:
    changed = np.empty(array.size, object)
    changed[:] = [change(one) for one in array.reshape(-1)]
    return changed.reshape(array.shape)
