"""What runs before and after the engine: the stages, behind one small protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from unified_backend.errors import RequestError
from unified_backend.tensors import Array, Signature

__all__ = ["Rows", "Stage"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a stage made of a batch.

    Attributes:
        arrays: output name -> array; its first dimension has the samples that passed, in their order.
        failed: index of a sample in the batch -> why that one did not pass. The message leaves the index out: whoever
            made the batch knows the sample's place in its own request, and adds that (`of_sample`).
    """

    arrays: Mapping[str, Array]
    failed: Mapping[int, RequestError] = dataclasses.field(default_factory=dict)


class Stage(Protocol):
    """Something that runs on a batch of samples before or after the engine.

    Attributes:
        signature: its inputs and outputs, the batch dimension first; inputs of dtype BYTES hold encoded files, one a
            sample, as arrays of `bytes` objects of shape [N, 1].
    """

    signature: Signature

    def run(self, feeds: Mapping[str, Array]) -> Rows:
        """The outputs for a batch; a sample that cannot be processed is told, and harms no other.

        Args:
            feeds: one array for each input, all with the same first dimension.

        Raises:
            RequestError: no sample of the batch can be told from the others in what is wrong.
            EngineError: the stage failed.
        """
        ...

    def close(self) -> None:
        """Free what it holds; it is not used afterwards."""
        ...
