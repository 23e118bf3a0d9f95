"""What a staged model is put together from, beside its engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from unified_backend.errors import RequestError
from unified_backend.stages import Stage
from unified_backend.tensors import Array, TensorSpec

__all__ = ["Before", "Lookup", "MadeOnDevice", "OnDevice"]


class Lookup(Protocol):
    """An output that is looked up in a list by the values of others."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of outputs of the engine."""
        ...

    def __call__(self, arrays: Mapping[str, Array]) -> Array:
        """The output, from the arrays of its sources."""
        ...

    def spec(self, outputs: Sequence[TensorSpec]) -> TensorSpec:
        """Of the output, from those of the engine."""
        ...


class MadeOnDevice(Protocol):
    """What a stage made on the GPU; see `stages.Rows`."""

    @property
    def arrays(self) -> Mapping[str, Any]:
        """Every output: arrays, and of those that are kept on the GPU DeviceArrays."""
        ...

    @property
    def failed(self) -> Mapping[int, RequestError]:
        """Index of a sample -> why it did not pass."""
        ...


@runtime_checkable
class OnDevice(Protocol):
    """A stage that can leave its result on the GPU."""

    def run_on_device(self, feeds: Mapping[str, Array], kept: Collection[str]) -> MadeOnDevice:
        """The outputs for a batch.

        Args:
            kept: names of outputs that stay in the GPU's memory where the stage makes them there.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Before:
    """The stage before the engine.

    Attributes:
        feeds: output of the stage -> the engine's input that it becomes.
    """

    stage: Stage
    feeds: Mapping[str, str]
