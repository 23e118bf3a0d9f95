"""What a model does in the time that Triton calls `infer`: stages and engine, or the steps of a fused pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unified_backend.measuring.result import Step
from unified_backend.server.metrics import Page
from unified_backend.server.traffic import gained_by_process
from unified_backend.spent import ENGINE, POSTPROCESS, PREPROCESS

__all__ = ["divided", "steps_of", "worked"]

_FAMILY = "unified_stage_duration_us"
_PARTS = {PREPROCESS: "preprocess", ENGINE: "infer", POSTPROCESS: "postprocess"}

Work = Mapping[str, float]


def worked(before: Page, after: Page) -> dict[str, dict[str, float]]:
    """Model -> stage -> microseconds between two looks at a server's metrics, over all instances.

    The backend hands them over once a second, so that either look may lack the last: shares are told, and no times.
    """
    spent: dict[str, dict[str, float]] = {}
    gained = gained_by_process(before.of(_FAMILY), after.of(_FAMILY), lambda labels: (labels["model"], labels["stage"]))
    for (model, stage), value in gained.items():
        if value > 0:
            spent.setdefault(model, {})[stage] = value
    return spent


def divided(parts: Mapping[str, float], work: Work) -> dict[str, float]:
    """Parts of a request's time with `infer` divided as the work in it is."""
    told = {_PARTS[stage]: value for stage, value in work.items() if stage in _PARTS}
    whole = sum(told.values())
    if "infer" not in parts or not whole:
        return dict(parts)
    return {**parts, **{part: parts["infer"] * value / whole for part, value in told.items()}}


def steps_of(parts: Mapping[str, float], work: Work, names: Iterable[str]) -> list[Step]:
    """The steps of a fused pipeline, which share its `infer` as they share the work.

    Args:
        names: of all its steps, in their order.
    """
    whole, infer = sum(work.values()), parts.get("infer", 0.0)
    return [Step(name, {"infer": infer * work[name] / whole}) for name in dict.fromkeys(names) if name in work]
