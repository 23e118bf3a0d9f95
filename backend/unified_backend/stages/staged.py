"""An engine with what surrounds it, as one runner: pre-processing, the engine, post-processing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from unified_backend.engines import Runner, run_one
from unified_backend.engines.device import DeviceRunner
from unified_backend.engines.uploads import DeviceArray
from unified_backend.errors import EngineError, RequestError, UnifiedError
from unified_backend.spent import ENGINE, POSTPROCESS, PREPROCESS, Spent
from unified_backend.stages import Rows, Stage
from unified_backend.stages.parts import Before, Lookup, OnDevice
from unified_backend.tensors import Array, Signature

__all__ = ["StagedRunner", "of_sample"]

logger = logging.getLogger(__name__)

Feeds = Mapping[str, Array]
EngineFeeds = Mapping[str, Any]  # arrays, and with an engine on the GPU DeviceArrays
Answer = dict[str, Array] | UnifiedError


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Requests that run together.

    Attributes:
        positions: of the requests, among those that were prepared.
        sizes: samples of each.
        feeds: the engine's inputs, one request below the other.
        extras: outputs of the stage before the engine that are none of its inputs, and are served.
    """

    positions: Sequence[int]
    sizes: Sequence[int]
    feeds: EngineFeeds
    extras: Feeds = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Requests whose pre-processing is done.

    Attributes:
        answers: the errors of those that failed in it, by position.
    """

    count: int
    answers: Mapping[int, UnifiedError]
    batches: Sequence[_Batch]


class StagedRunner:
    """Answers with an engine and the stages around it; see `EachRunner`.

    Args:
        runner: the engine.
        signature: what requests bring and get.
        batched: tensors have a batch dimension; else each request runs alone, as it is.
        before: makes inputs of the engine.
        lookups: output -> how it is looked up in what the engine gives.
        after: makes the outputs of the engine's.
    """

    def __init__(
        self,
        runner: Runner,
        signature: Signature,
        batched: bool,
        before: Before | None = None,
        lookups: Mapping[str, Lookup] | None = None,
        after: Stage | None = None,
    ) -> None:
        self.runner = runner
        self.signature = signature
        self._batched = batched
        self._before, self._lookups, self._after = before, lookups or {}, after
        self._items = {spec.name: spec.numpy.itemsize for spec in runner.signature.inputs}
        self.spent = Spent()
        self._on_device: OnDevice | None = None
        if before and isinstance(runner, DeviceRunner) and isinstance(before.stage, OnDevice):
            self._on_device = before.stage  # what is decoded on the GPU stays there
        self._stage_inputs = {spec.name for spec in before.stage.signature.inputs} if before else set()

    def run(self, feeds: Feeds, outputs: Sequence[str], into: Feeds | None = None) -> list[Array]:
        """The outputs for one request; see `Runner.run`."""
        return run_one(self, feeds, outputs, into)

    def prepare(self, requests: Sequence[Feeds]) -> _Prepared:
        """Pre-process requests, those of equal shapes as one batch."""
        answers: dict[int, UnifiedError] = {}
        batches = list[_Batch]()
        with self.spent.on(PREPROCESS) if self._before else nullcontext():
            for positions in self._groups(requests):
                batches += self._prepared(requests, positions, answers)
        return _Prepared(len(requests), answers, batches)

    def finish(self, prepared: _Prepared, outputs: Sequence[str]) -> list[Answer]:
        """Run the engine and what follows on requests that were prepared."""
        answers: dict[int, Answer] = dict(prepared.answers)
        for batch in prepared.batches:
            answers.update(self._answers(batch, outputs))
        return [answers[position] for position in range(prepared.count)]

    def close(self) -> None:
        """Free the stages and the engine."""
        if self._before:
            self._before.stage.close()
        if self._after:
            self._after.close()
        self.runner.close()

    def _groups(self, requests: Sequence[Feeds]) -> list[list[int]]:
        """Positions of requests that can be one batch: all rows of equal shapes."""
        if not self._batched:
            return [[position] for position in range(len(requests))]
        groups: dict[object, list[int]] = {}
        for position, feeds in enumerate(requests):
            shapes = tuple((name, array.shape[1:]) for name, array in sorted(feeds.items()))
            groups.setdefault(shapes, []).append(position)
        return list(groups.values())

    def _prepared(
        self, requests: Sequence[Feeds], positions: Sequence[int], answers: dict[int, UnifiedError]
    ) -> list[_Batch]:
        """Requests of a group that pass the stage before the engine, as a batch; errors of others go to `answers`.

        Where the stage makes no batch of them (images that stay of different sizes), there are several.
        """
        sizes = [_samples(requests[position]) for position in positions]
        joined = _joined([requests[position] for position in positions])
        if self._before is None:
            return [_Batch(positions, sizes, joined)]
        taken = {name: array for name, array in joined.items() if name in self._stage_inputs}
        rest = {name: array for name, array in joined.items() if name not in self._stage_inputs}
        try:
            fed = self._before.feeds
            if self._on_device and not (made := self._on_device.run_on_device(taken, fed)).failed:
                own = {name: array for name, array in made.arrays.items() if name not in fed}
                return [_Batch(positions, sizes, {**rest, **self._fed(made.arrays)}, own)]
            rows = self._before.stage.run(taken)
            _require_rows(rows, sum(sizes) if self._batched else None, "preprocess")
        except UnifiedError as error:
            if len(positions) == 1:
                answers[positions[0]] = error
                return []
            return self._one_by_one(requests, positions, answers)
        kept, kept_sizes, given, passed = [], list[int](), list[int](), list[int]()
        begin = beyond = 0
        for position, size in zip(positions, sizes, strict=True):
            failed = [sample for sample in range(begin, begin + size) if sample in rows.failed]
            if failed:
                answers[position] = of_sample(rows.failed[failed[0]], failed[0] - begin, size)
            else:
                kept.append(position)
                kept_sizes.append(size)
                given += range(begin, begin + size)
                passed += range(beyond, beyond + size)
            begin += size
            beyond += size - len(failed)
        if not kept:
            return []
        feeds = {name: _chosen(array, given) for name, array in rest.items()}
        chosen = {name: _chosen(array, passed) for name, array in rows.arrays.items()}
        extras = {name: array for name, array in chosen.items() if name not in self._before.feeds}
        return [_Batch(kept, kept_sizes, {**feeds, **self._fed(chosen)}, extras)]

    def _fed(self, arrays: EngineFeeds) -> dict[str, Any]:
        """The engine's inputs among what the stage before it made."""
        assert self._before
        return {into: arrays[name] for name, into in self._before.feeds.items()}

    def _one_by_one(
        self, requests: Sequence[Feeds], positions: Sequence[int], answers: dict[int, UnifiedError]
    ) -> list[_Batch]:
        alone = [batch for position in positions for batch in self._prepared(requests, [position], answers)]
        return [
            _Batch(
                [alone[at].positions[0] for at in group],
                [alone[at].sizes[0] for at in group],
                _joined([alone[at].feeds for at in group]),
                _joined([alone[at].extras for at in group]),
            )
            for group in self._groups([{**batch.feeds, **batch.extras} for batch in alone])
        ]

    def _answers(self, batch: _Batch, outputs: Sequence[str]) -> dict[int, Answer]:
        """The answer to each request of a batch; one that fails is run again by requests, so that the culprit fails."""
        try:
            made = self._outputs(batch.feeds, [name for name in outputs if name not in batch.extras])
            extras = {name: array for name, array in batch.extras.items() if name in outputs}
            arrays = Rows({**made.arrays, **extras}, made.failed)
        except Exception as error:
            if len(batch.positions) > 1:
                logger.info('batch run one by one requests=%d reason="%s"', len(batch.positions), error)
                return self._answers_alone(batch, outputs)
            if not isinstance(error, UnifiedError):
                raise
            return {batch.positions[0]: error}
        if len(batch.positions) == 1:
            failed = arrays.failed
            whole: Answer = of_sample(failed[min(failed)], min(failed), batch.sizes[0]) if failed else {**arrays.arrays}
            return {batch.positions[0]: whole}
        total = sum(batch.sizes)
        if arrays.failed or any(array.shape[:1] != (total,) for array in arrays.arrays.values()):
            return self._answers_alone(batch, outputs)
        answers: dict[int, Answer] = {}
        begin = 0
        for position, size in zip(batch.positions, batch.sizes, strict=True):
            answers[position] = {name: array[begin : begin + size] for name, array in arrays.arrays.items()}
            begin += size
        return answers

    def _answers_alone(self, batch: _Batch, outputs: Sequence[str]) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        begin = 0
        for position, size in zip(batch.positions, batch.sizes, strict=True):
            own = {
                name: array.rows(begin, begin + size, self._items[name])
                if isinstance(array, DeviceArray)
                else array[begin : begin + size]
                for name, array in batch.feeds.items()
            }
            extras = {name: array[begin : begin + size] for name, array in batch.extras.items()}
            answers |= self._answers(_Batch([position], [size], own, extras), outputs)
            begin += size
        return answers

    def _outputs(self, feeds: EngineFeeds, outputs: Sequence[str]) -> Rows:
        """What is asked for, from the engine's inputs."""
        if self._after:
            names = [spec.name for spec in self._after.signature.inputs]
            arrays = self._engine(feeds, names)
            with self.spent.on(POSTPROCESS):
                rows = self._after.run(arrays)
            _require_rows(rows, len(next(iter(arrays.values()))) if self._batched else None, "postprocess")
            return Rows({name: rows.arrays[name] for name in outputs}, rows.failed)
        sources = [name for output in outputs if output in self._lookups for name in self._lookups[output].sources]
        names = list(dict.fromkeys([*(name for name in outputs if name not in self._lookups), *sources]))
        arrays = self._engine(feeds, names) if names else {}
        if not sources:
            return Rows({name: arrays[name] for name in outputs})
        with self.spent.on(POSTPROCESS):
            found = {name: self._lookups[name](arrays) for name in outputs if name in self._lookups}
        return Rows({name: found[name] if name in found else arrays[name] for name in outputs})

    def _engine(self, feeds: EngineFeeds, names: Sequence[str]) -> dict[str, Array]:
        with self.spent.on(ENGINE):
            return dict(zip(names, self.runner.run(feeds, names), strict=True))


def _require_rows(rows: Rows, samples: int | None, which: str) -> None:
    """
    Args:
        samples: of the batch; None where there is no batch dimension.

    Raises:
        EngineError: the stage made more or fewer rows than there are samples, whose places would be mixed up.
    """
    for name, array in rows.arrays.items():
        if samples is not None and array.shape[:1] != (samples - len(rows.failed),):
            raise EngineError(
                f"the stage {which} answered otherwise than a stage has to",
                f'"{name}" has {len(array) if array.ndim else "no"} rows for {samples - len(rows.failed)} samples',
                "Return one row for each sample",
            )


def _samples(feeds: Feeds) -> int:
    array = next(iter(feeds.values()))
    return len(array) if array.shape else 1


def _joined(requests: Sequence[Feeds]) -> Feeds:
    """The arrays of requests, one below the other."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([feeds[name] for feeds in requests]) for name in requests[0]}


def _chosen(array: Array, rows: Sequence[int]) -> Array:
    """Some rows of an array, in ascending order; the array itself where it is all of them."""
    return array if len(rows) == len(array) else array[list(rows)]


def of_sample(error: RequestError, sample: int, samples: int) -> UnifiedError:
    """An error of a sample, with the sample's place in its own request; what it was in the batch says nothing."""
    where = f"sample {sample} of {samples}: " if samples > 1 else ""
    return RequestError(f"{where}{error.what}", error.why, error.do)
