"""NVIDIA DALI as an engine: serves pipelines as Triton's DALI backend does."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.engines import Built, Canonical, Runner, Threads, run_one
from unified_backend.errors import ConfigError, EngineError, RequestError, UnifiedError
from unified_backend.formats.dali import rows_of, spec_of
from unified_backend.formats.dali_file import Port, ports
from unified_backend.gpus import Gpu
from unified_backend.settings import Settings
from unified_backend.spent import Spent
from unified_backend.stages.dali_definition import pipeline_bytes
from unified_backend.stages.dali_pipeline import PipelineStage
from unified_backend.stages.decoders import without_gpu_decoders
from unified_backend.stages.staged import of_sample
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["DaliEngine", "DaliRunner", "SplitRunner"]

_RECIPE = 1  # raised when the same key fields would give other files
_FILE = "model.dali"
_BATCH = 32  # samples at most of a pipeline whose config is not completed yet


class DaliEngine:
    """The rung of DALI's pipelines."""

    name = "dali"
    accepts = frozenset({"dali"})

    def unusable(self, gpu: Gpu | None) -> str | None:
        """Why DALI cannot be used here, or None."""
        if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
            return "NVIDIA DALI is not installed: pip install 'triton-unified-backend[dali]', or nvidia-dali-cuda130"
        return None

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """DALI's version, and where it runs."""
        import nvidia.dali

        return {
            "dali": str(nvidia.dali.__version__),
            "gpu": settings.gpu is not None,
            "split": list(settings.split_along_outer_axis),
            "recipe": _RECIPE,
        }

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Serialise the pipeline, and run a made-up sample where it does not say what comes out.

        Raises:
            EngineError: the file does not define a pipeline, or DALI does not build it.
        """
        if settings.gpu is None:
            without_gpu_decoders()
        try:
            data = pipeline_bytes(canonical.path, _BATCH, 1, settings.gpu, canonical.label, "_is_autoserialize")
            stage = PipelineStage(data, canonical.path.name, _BATCH, 1, settings.gpu, canonical.label, files=False)
        except ConfigError as error:
            raise EngineError(error.what, error.why, error.do) from None
        (folder / _FILE).write_bytes(data)
        outputs = [(spec.name, spec.dtype, len(spec.shape or ()) - 1) for spec in stage.signature.outputs]
        stage.close()
        return {"outputs": outputs}

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> Runner:
        """Build the pipeline for this host.

        Raises:
            EngineError: DALI does not build it.
        """
        if built is None:
            raise EngineError(
                f"{canonical.label}: DALI cannot serve the model",
                "no disk has room for its pipeline",
                "Give the cache more room (TRITON_UNIFIED_CACHE_MAX_SIZE)",
            )
        if settings.gpu is None:
            without_gpu_decoders()
        data = (built.folder / _FILE).read_bytes()
        outputs = [Port(*row) for row in built.facts["outputs"]]
        most = canonical.max_batch_size or _BATCH
        count = settings.num_threads or threads.intra_op
        stage = PipelineStage(data, canonical.path.name, most, count, settings.gpu, canonical.label, False, outputs)
        try:
            served = _served(canonical, ports(data)[0], outputs, settings.split_along_outer_axis)
        except ValueError as error:
            stage.close()
            raise EngineError(
                f"{canonical.label}: DALI cannot serve the model",
                str(error),
                "Leave it out of split_along_outer_axis",
            ) from None
        return SplitRunner(stage, served) if settings.split_along_outer_axis else DaliRunner(stage, served)


@dataclasses.dataclass(frozen=True)
class _Served:
    """What requests bring and get.

    Attributes:
        inputs: name in the pipeline -> name served.
        outputs: name served -> name in the pipeline.
        split: outputs whose samples' outer axis is taken away, by the names served.
    """

    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    split: frozenset[str]


def _served(canonical: Canonical, inputs: Sequence[Port], outputs: Sequence[Port], split: Sequence[str]) -> _Served:
    """
    Raises:
        ValueError: what is to be split has no axis.
    """
    given = {spec.name: spec for spec in canonical.signature.inputs}
    names = {mine: name for name, mine in canonical.inner.items()}

    def named(port: Port) -> TensorSpec:
        return dataclasses.replace(spec_of(port), name=names.get(port.name, port.name))

    taken, made = list(map(named, inputs)), list(map(named, outputs))
    return _Served(
        Signature(
            tuple(given.get(spec.name, spec) for spec in taken),
            tuple(rows_of(spec) if spec.name in split else spec for spec in made),
        ),
        {port.name: spec.name for port, spec in zip(inputs, taken, strict=True)},
        {spec.name: port.name for port, spec in zip(outputs, made, strict=True)},
        frozenset(split),
    )


class DaliRunner:
    """A pipeline that answers requests.

    A request with a sample that is refused fails as a whole; the executor runs the others of its batch again.
    """

    def __init__(self, stage: PipelineStage, served: _Served) -> None:
        self._stage, self._served = stage, served
        self.signature = served.signature

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        rows = self._stage.run({mine: feeds[name] for mine, name in self._served.inputs.items()})
        if rows.failed:
            first = min(rows.failed)
            raise of_sample(rows.failed[first], first, len(next(iter(feeds.values()))))
        arrays = []
        for name in outputs:
            array = rows.arrays[self._served.outputs[name]]
            if into and name in into:
                np.copyto(into[name], array)
                array = into[name]
            arrays.append(array)
        return arrays

    def close(self) -> None:
        """Free the pipeline."""
        self._stage.close()


class SplitRunner:
    """A pipeline whose samples become any number of rows; see `EachRunner`.

    Requests of one batch are kept apart by their samples, for the rows of a batch do not tell whose they are.
    """

    def __init__(self, stage: PipelineStage, served: _Served) -> None:
        self._stage, self._served = stage, served
        self.signature = served.signature
        self.spent = Spent()

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs for one request; see `Runner.run`."""
        return run_one(self, feeds, outputs, into)

    def prepare(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array] | UnifiedError]:
        """All outputs of each request, which run as one batch; where that fails, each alone."""
        own = [{mine: feeds[name] for mine, name in self._served.inputs.items()} for feeds in requests]
        try:
            samples = iter(self._stage.samples(own))
        except UnifiedError as error:
            if len(requests) == 1:
                return [error]
            return [answer for feeds in requests for answer in self.prepare([feeds])]
        counts = [len(next(iter(feeds.values()))) for feeds in own]
        return [self._joined(list(itertools.islice(samples, count))) for count in counts]

    def finish(
        self, prepared: Sequence[dict[str, Array] | UnifiedError], outputs: Sequence[str]
    ) -> list[dict[str, Array] | UnifiedError]:
        """Those outputs of each request that are asked for."""
        return [
            answer if isinstance(answer, UnifiedError) else {name: answer[name] for name in outputs}
            for answer in prepared
        ]

    def close(self) -> None:
        """Free the pipeline."""
        self._stage.close()

    def _joined(self, samples: Sequence[dict[str, Array] | RequestError]) -> dict[str, Array] | UnifiedError:
        """The outputs of a request, from its samples."""
        made = []
        for place, sample in enumerate(samples):
            if isinstance(sample, RequestError):
                return of_sample(sample, place, len(samples))
            made.append(sample)
        answer = {}
        for name, mine in self._served.outputs.items():
            arrays = [sample[mine] for sample in made]
            cut = name in self._served.split
            if len({array.shape[cut:] for array in arrays}) > 1:
                return self._stage.ragged(name)
            answer[name] = np.concatenate(arrays) if cut else np.stack(arrays)
        return answer
