"""A stage between models of a Triton ensemble: items travel with their number, for Triton passes no empty tensor on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unified_backend.ensembles.runner import PipelineRunner
from unified_backend.errors import RequestError
from unified_backend.formats.pipeline import Compiled
from unified_backend.tensors import Array

__all__ = ["CountedRunner"]


class CountedRunner:
    """A pipeline between whose inputs or outputs and the next model stands Triton, which passes no empty tensor on.

    Items travel as one row of zeros where there are none, and their number beside them.

    Args:
        runner: of the pipeline, whose requests are of one sample each.
        pipeline: with `counts`.
    """

    def __init__(self, runner: PipelineRunner, pipeline: Compiled) -> None:
        self.signature = pipeline.counted_signature
        self._runner, self._pipeline = runner, pipeline

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs for one request; see `Runner.run`."""
        counts = self._pipeline.counts
        given = {
            name: array[: int(feeds[counts[name]].reshape(-1)[0])] if name in counts else array
            for name, array in feeds.items()
            if name not in counts.values()
        }
        made = self._pipeline.outputs
        arrays = dict(zip(made, self._runner.run(given, list(made)), strict=True))
        if (most := max((len(arrays[name]) for name in made if name in counts), default=0)) > self._pipeline.max_items:
            raise RequestError(
                f"{self._pipeline.name} made {most} items",
                f"the pipeline's max_items is {self._pipeline.max_items}",
                "Raise it in the pipeline's file, and build the ensemble again",
            )
        answers = {counts[name]: np.full((1, 1), len(arrays[name]), np.int32) for name in made if name in counts}
        answers |= {name: array if len(array) or name not in counts else _row(array) for name, array in arrays.items()}
        return [answers[name] for name in outputs]

    def close(self) -> None:
        """Free the pipeline."""
        self._runner.close()


def _row(array: Array) -> Array:
    """One row of zeros, or of empty strings."""
    shape = (1, *(max(size, 1) for size in array.shape[1:]))
    return np.full(shape, "", object) if array.dtype.kind == "O" else np.zeros(shape, array.dtype)
