"""Something that runs: the engines, behind the two small protocols that every one of them implements."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from unified_backend.errors import UnifiedError
from unified_backend.gpus import Gpu
from unified_backend.settings import Settings
from unified_backend.spent import Spent
from unified_backend.tensors import Array, Signature

__all__ = ["Built", "Canonical", "EachRunner", "Engine", "Runner", "Threads", "builds_slowly", "run_one"]


@dataclasses.dataclass(frozen=True)
class Canonical:
    """What an engine is built from: the ONNX model made from a source, or a source that the engine takes as it is.

    Attributes:
        label: `model/version`, for messages.
        path: the ONNX file, its external data beside it; or the source's own first file.
        digest: SHA-256 over everything the model's bytes depend on, in hex.
        signature: its inputs and outputs, under the names they are served by.
        notes: what a user should know, one line each (an output left out, for example).
        format: a key of `formats.FORMATS`.
        inner: name served -> name in the file, where they differ.
        part: key of the source's signature that is served, where readers take another by themselves.
        feeds: tensor -> value, of the source's inputs that are constants when it is served (`is_training`: false).
        judged_by: the engine that was seen to compute what the source does.
        built: that engine, where it was built to see it; of a source that is not ONNX.
        fixed: dimensions that the model leaves open and the config fixes: input name -> axis -> size.
        max_batch_size: as the completed config has it; 0 for tensors without a batch dimension.
        precision: that the model was lowered to; None as it came.
        judge: an ONNX file that computes the same, for the engine that others are compared with, where that one has no
            kernels for `path`.
    """

    label: str
    path: Path
    digest: str
    signature: Signature
    notes: tuple[str, ...] = ()
    format: str = "onnx"
    inner: Mapping[str, str] = dataclasses.field(default_factory=dict)
    part: str | None = None
    feeds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    judged_by: str = "onnxruntime"
    built: Built | None = None
    fixed: Mapping[str, Mapping[int, int]] = dataclasses.field(default_factory=dict)
    max_batch_size: int = 0
    precision: str | None = None
    judge: Path | None = None


@dataclasses.dataclass(frozen=True)
class Threads:
    """Threads an engine may use: inside one operator, and across operators."""

    intra_op: int
    inter_op: int = 1


@dataclasses.dataclass(frozen=True)
class Built:
    """An engine on disk: the folder that `Engine.build` wrote, and the facts it returned."""

    folder: Path
    facts: Mapping[str, Any]


class Runner(Protocol):
    """An engine in memory that answers requests."""

    signature: Signature

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order.

        Args:
            feeds: one array for each input, C-contiguous, of the dtype that `TensorSpec.numpy` gives.
            outputs: names of outputs.
            into: arrays of the right shape to write an output to, by name; the one returned is that array.

        Raises:
            RequestError: the model does not take these values or shapes.
            EngineError: the engine failed.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory; it is not used afterwards."""
        ...


@runtime_checkable
class EachRunner(Runner, Protocol):
    """A runner that takes several requests at once and keeps the answer or the error of each apart.

    Its work is in two halves, so that one batch can be prepared while the engine runs another; each half is called by
    one thread at a time.

    Attributes:
        spent: the time that its parts take, counted here; may be replaced by another counter.
    """

    spent: Spent

    def prepare(self, requests: Sequence[Mapping[str, Array]]) -> Any:
        """What can be done of some requests before the engine is free.

        Args:
            requests: the inputs of each, as `run` takes them; together at most one batch.
        """
        ...

    def finish(self, prepared: Any, outputs: Sequence[str]) -> list[dict[str, Array] | UnifiedError]:
        """The outputs asked for of each request that was prepared, or why it has none; in their order.

        Raises:
            EngineError: none of them can be answered.
        """
        ...


class Engine(Protocol):
    """A kind of engine: one rung of the ladder.

    One whose builds take longer than a server's start may has a true attribute `builds_slowly` beside these.

    Attributes:
        name: as the parameter `engine` has it.
        accepts: the formats that it is built from.
    """

    name: str
    accepts: frozenset[str]

    def unusable(self, gpu: Gpu | None) -> str | None:
        """Why this host cannot use the engine, or None.

        Args:
            gpu: that of the instance; None for one on the CPU.
        """
        ...

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """What the built bytes depend on beside the canonical model: versions, options, device."""
        ...

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Write the engine's files into `folder`; the facts returned go into the entry's manifest.

        Raises:
            EngineError: it cannot be built from this model.
        """
        ...

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> Runner:
        """Load what was built; without it, build in memory (no disk had room).

        Raises:
            EngineError: it does not load.
        """
        ...


def builds_slowly(engine: Engine) -> bool:
    """Whether `build: background` puts the engine's builds off."""
    return bool(getattr(engine, "builds_slowly", False))


def run_one(
    runner: EachRunner, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None
) -> list[Array]:
    """The `run` of an `EachRunner`: one request, whose error is raised."""
    answer = runner.finish(runner.prepare([feeds]), outputs)[0]
    if isinstance(answer, UnifiedError):
        raise answer
    for name, target in (into or {}).items():
        np.copyto(target, answer[name])
        answer[name] = target
    return [answer[name] for name in outputs]
