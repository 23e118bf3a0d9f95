"""Does the model compute for each sample of a batch what it computes for that sample alone?"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_backend.engines import Runner
from unified_backend.errors import EngineError, RequestError
from unified_backend.samples import FREE_DIMENSIONS, FixedDims, sample_feeds, shape_of
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["Batching", "Verdict", "prove_batching"]

# Kernels may sum in another order at another batch size; the largest difference accepted, relative to the largest
# value of the output. Half types have 8 to 11 bits of mantissa.
_TOLERANCE = {"FP64": 1e-6, "FP32": 1e-3, "FP16": 2e-2, "BF16": 8e-2}


class Verdict(enum.Enum):
    """What is known about batching a model."""

    PROVEN = "proven"  # ran at batch 2, and every row equals that sample's own answer
    UNPROVEN = "unproven"  # the shapes allow it, but no sample input could be made that runs
    ROWS_DIFFER = "rows differ"  # it runs at batch 2, and the answers depend on what shares the batch
    IMPOSSIBLE = "impossible"  # the shapes, or the graph at batch 2, do not allow it


@dataclasses.dataclass(frozen=True)
class Batching:
    """Whether requests may be put into one batch along the first dimension.

    Attributes:
        verdict: what was found.
        reason: why, in words.
        free: the size that dimensions left open were tried with; None if no sample input ran.
        ranks: the rank of each output, as seen in the run; empty if none ran.
    """

    verdict: Verdict
    reason: str
    free: int | None = None
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {"verdict": self.verdict.value, "reason": self.reason, "free": self.free, "ranks": dict(self.ranks)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Batching:
        """What `to_json` wrote."""
        return Batching(Verdict(values["verdict"]), values["reason"], values["free"], values["ranks"])


def prove_batching(runner: Runner, fixed: FixedDims) -> Batching:
    """Run the model on two different samples, alone and as a batch of 2, and compare.

    Args:
        runner: the reference engine.
        fixed: dimensions that the user's config fixes: input name -> axis -> size.
    """
    signature = runner.signature
    obstacle = _obstacle(signature)
    leading = 1 if obstacle is None else None
    free, alone, reason = _first_that_runs(runner, fixed, leading)
    ranks = {name: array.ndim for name, array in alone.items()}
    if obstacle is not None:
        return Batching(Verdict.IMPOSSIBLE, obstacle, free, ranks)
    if free is None:
        if _one_symbol(signature):
            return Batching(Verdict.UNPROVEN, f"no sample input ran: {reason}")
        return Batching(Verdict.IMPOSSIBLE, f"no sample input ran, so it is not shown: {reason}")
    verdict, why = _compare(runner, fixed, free)
    return Batching(verdict, why, free, ranks)


def _obstacle(signature: Signature) -> str | None:
    """What in the shapes rules batching out, if anything."""
    if not signature.inputs:
        return "the model has no input"
    for spec in signature.inputs:
        if not spec.shape:
            return f"input {spec.name} is a scalar" if spec.shape == () else f"input {spec.name} has no known rank"
    for side in ("inputs", "outputs"):
        for spec in getattr(signature, side):
            if spec.shape and isinstance(spec.shape[0], int):
                return f"{side[:-1]} {spec.name} has a first dimension fixed at {spec.shape[0]}"
    return None


def _one_symbol(signature: Signature) -> bool:
    """Whether every input and output names the same symbolic first dimension."""
    leading = {spec.shape[0] if spec.shape else None for spec in (*signature.inputs, *signature.outputs)}
    return len(leading) == 1 and leading != {None}


def _first_that_runs(runner: Runner, fixed: FixedDims, batch: int | None) -> tuple[int | None, dict[str, Array], str]:
    """The first size for open dimensions at which a sample runs, its outputs, or why the first attempt failed."""
    first_reason = ""
    for free in FREE_DIMENSIONS if _has_free(runner.signature, fixed, batch) else FREE_DIMENSIONS[:1]:
        try:
            return free, _run(runner, _feeds(runner, fixed, free, batch, seed=1)), ""
        except (RequestError, EngineError) as error:
            first_reason = first_reason or error.why
    return None, {}, first_reason


def _has_free(signature: Signature, fixed: FixedDims, batch: int | None) -> bool:
    """Whether any dimension of a sample depends on the size that open dimensions are given."""
    return _shapes(signature, 3, fixed, batch) != _shapes(signature, 5, fixed, batch)


def _compare(runner: Runner, fixed: FixedDims, free: int) -> tuple[Verdict, str]:
    singles = [_feeds(runner, fixed, free, 1, seed) for seed in (1, 2)]
    pair = {name: np.concatenate([single[name] for single in singles]) for name in singles[0]}
    try:
        together = _run(runner, pair)
    except (RequestError, EngineError) as error:
        return Verdict.IMPOSSIBLE, f"it runs at batch 1 and fails at batch 2: {error.why}"
    alone = [_run(runner, single) for single in singles]
    again = _run(runner, singles[0])
    for spec in runner.signature.outputs:
        rows = [single[spec.name] for single in alone]
        shapes = [array.shape for array in (*rows, together[spec.name])]
        if not all(shapes) or [shape[0] for shape in shapes] != [1, 1, 2]:
            return Verdict.IMPOSSIBLE, f"output {spec.name} has shape {shapes[0]} at batch 1 and {shapes[2]} at batch 2"
        if _difference(spec, again[spec.name], rows[0]) > 0:
            continue  # random by design: there is no answer to compare with
        if shapes[0][1:] != shapes[2][1:]:
            return (
                Verdict.ROWS_DIFFER,
                f"output {spec.name} has rows of shape {shapes[0][1:]} alone and {shapes[2][1:]}",
            )
        worst = _difference(spec, together[spec.name], np.concatenate(rows))
        if worst > _TOLERANCE.get(spec.dtype, 0):
            return (
                Verdict.ROWS_DIFFER,
                f"output {spec.name} differs by {worst:.1e} of its largest value in a batch of 2",
            )
    return Verdict.PROVEN, "a batch of 2 gave the answers of its samples alone"


def _difference(spec: TensorSpec, one: Array, other: Array) -> float:
    """The largest difference, relative to the largest value for floats; 0 or 1 for everything else."""
    if one.shape != other.shape:
        return float("inf")
    if spec.dtype == "BF16":
        one, other = ((array.astype(np.uint32) << 16).view(np.float32) for array in (one, other))
    elif not spec.dtype.startswith("FP"):
        return float(not np.array_equal(one, other))
    one, other = one.astype(np.float64), other.astype(np.float64)
    unequal = (one != other) & ~(np.isnan(one) & np.isnan(other))
    if not unequal.any():
        return 0.0
    largest = np.abs(other[np.isfinite(other)]).max(initial=1e-30)
    return float(np.nan_to_num(np.abs(one - other)[unequal], nan=np.inf).max() / largest)


def _shapes(signature: Signature, free: int, fixed: FixedDims, batch: int | None) -> dict[str, tuple[int, ...]]:
    return {spec.name: shape_of(spec, free, fixed, batch if spec.shape else None) for spec in signature.inputs}


def _feeds(runner: Runner, fixed: FixedDims, free: int, batch: int | None, seed: int) -> dict[str, Array]:
    signature = runner.signature
    return sample_feeds(signature.inputs, _shapes(signature, free, fixed, batch), seed)


def _run(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = [spec.name for spec in runner.signature.outputs]
    return dict(zip(names, runner.run(feeds, names), strict=True))
