"""NVIDIA DALI as an engine: serves pipelines as Triton's DALI backend does."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.engines import Built, Canonical, Threads
from unified_backend.errors import ConfigError, EngineError
from unified_backend.formats.dali import spec_of
from unified_backend.formats.dali_file import Port, ports
from unified_backend.gpus import Gpu
from unified_backend.settings import Settings
from unified_backend.stages.dali_pipeline import PipelineStage, pipeline_bytes
from unified_backend.stages.staged import of_sample
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["DaliEngine", "DaliRunner"]

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

        return {"dali": str(nvidia.dali.__version__), "gpu": settings.gpu is not None, "recipe": _RECIPE}

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Serialise the pipeline, and run a made-up sample where it does not say what comes out.

        Raises:
            EngineError: the file does not define a pipeline, or DALI does not build it.
        """
        try:
            data = pipeline_bytes(canonical.path, _BATCH, 1, settings.gpu, canonical.label, "_is_autoserialize")
            stage = PipelineStage(data, canonical.path.name, _BATCH, 1, settings.gpu, canonical.label, files=False)
        except ConfigError as error:
            raise EngineError(error.what, error.why, error.do) from None
        (folder / _FILE).write_bytes(data)
        outputs = [(spec.name, spec.dtype, len(spec.shape or ()) - 1) for spec in stage.signature.outputs]
        stage.close()
        return {"outputs": outputs}

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> DaliRunner:
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
        data = (built.folder / _FILE).read_bytes()
        outputs = [Port(*row) for row in built.facts["outputs"]]
        most = canonical.max_batch_size or _BATCH
        count = settings.num_threads or threads.intra_op
        stage = PipelineStage(data, canonical.path.name, most, count, settings.gpu, canonical.label, False, outputs)
        return DaliRunner(canonical, stage, ports(data)[0], outputs)


class DaliRunner:
    """A pipeline that answers requests.

    A request with a sample that is refused fails as a whole; the executor runs the others of its batch again.
    """

    def __init__(
        self, canonical: Canonical, stage: PipelineStage, inputs: Sequence[Port], outputs: Sequence[Port]
    ) -> None:
        self._stage = stage
        given = {spec.name: spec for spec in canonical.signature.inputs}
        served = {mine: name for name, mine in canonical.inner.items()}

        def named(port: Port) -> TensorSpec:
            return dataclasses.replace(spec_of(port), name=served.get(port.name, port.name))

        specs = [(port.name, named(port)) for port in inputs]
        self._inputs = {mine: spec.name for mine, spec in specs}
        self._outputs = {named(port).name: port.name for port in outputs}
        self.signature = Signature(
            tuple(given.get(spec.name, spec) for _, spec in specs), tuple(named(port) for port in outputs)
        )

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        rows = self._stage.run({mine: feeds[name] for mine, name in self._inputs.items()})
        if rows.failed:
            first = min(rows.failed)
            raise of_sample(rows.failed[first], first, len(next(iter(feeds.values()))))
        arrays = []
        for name in outputs:
            array = rows.arrays[self._outputs[name]]
            if into and name in into:
                np.copyto(into[name], array)
                array = into[name]
            arrays.append(array)
        return arrays

    def close(self) -> None:
        """Free the pipeline."""
        self._stage.close()
