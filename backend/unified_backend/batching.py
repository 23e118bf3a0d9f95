"""Does the model compute for each sample of a batch what it computes for that sample alone?"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_backend.engines import Runner
from unified_backend.errors import EngineError, RequestError
from unified_backend.samples import FixedDims, Recipe, recipes
from unified_backend.tensors import ROWS, Array, Signature, TensorSpec

__all__ = ["RECIPE", "Batching", "Verdict", "batching_by_shapes", "prove_batching"]

RECIPE = 1  # part of the proof's key: raised when the same model would be judged otherwise
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
        recipe: makes samples that the model takes; None if none was found.
        ranks: the rank of each output, as seen in the run; empty if none ran.
    """

    verdict: Verdict
    reason: str
    recipe: Recipe | None = None
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        recipe = None if self.recipe is None else dataclasses.asdict(self.recipe)
        return {"verdict": self.verdict.value, "reason": self.reason, "recipe": recipe, "ranks": dict(self.ranks)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Batching:
        """What `to_json` wrote."""
        recipe = None if values["recipe"] is None else Recipe(**values["recipe"])
        return Batching(Verdict(values["verdict"]), values["reason"], recipe, values["ranks"])


def prove_batching(runner: Runner, fixed: FixedDims) -> Batching:
    """Run the model on two different samples, alone and as a batch of 2, and compare.

    Args:
        runner: the reference engine.
        fixed: dimensions that the user's config fixes: input name -> axis -> size.
    """
    signature = runner.signature
    obstacle = _obstacle(signature)
    batch = None if obstacle else 1
    refusal = ""
    for recipe in recipes(signature, fixed, batch):
        try:
            alone = _run(runner, recipe.feeds(signature, fixed, batch, seed=1))
        except (RequestError, EngineError) as error:
            refusal = refusal or error.why
            continue
        verdict, reason = (Verdict.IMPOSSIBLE, obstacle) if obstacle else _compare(runner, fixed, recipe)
        return Batching(verdict, reason, recipe, {name: array.ndim for name, array in alone.items()})
    if obstacle is None and _one_symbol(signature):
        return Batching(Verdict.UNPROVEN, f"no sample input ran: {refusal}")
    return Batching(Verdict.IMPOSSIBLE, obstacle or f"no sample input ran, so it is not shown: {refusal}")


def batching_by_shapes(signature: Signature) -> Batching:
    """What the shapes alone say, before any run."""
    if obstacle := _obstacle(signature):
        return Batching(Verdict.IMPOSSIBLE, obstacle)
    return Batching(Verdict.UNPROVEN, "no run has proven it yet")


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
    """Whether every input and output names the same symbolic first dimension; rows of the samples come from it."""
    leading = {spec.shape[0] if spec.shape else None for spec in (*signature.inputs, *signature.outputs)} - {ROWS}
    return len(leading) == 1 and leading != {None}


def _compare(runner: Runner, fixed: FixedDims, recipe: Recipe) -> tuple[Verdict, str]:
    singles = [recipe.feeds(runner.signature, fixed, 1, seed) for seed in (1, 2)]
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
        counted = spec.shape and spec.shape[0] == ROWS  # compared below: they must be those of the samples alone
        if not all(shapes) or (not counted and [shape[0] for shape in shapes] != [1, 1, 2]):
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


def _run(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = [spec.name for spec in runner.signature.outputs]
    return dict(zip(names, runner.run(feeds, names), strict=True))
