"""What a run of `tune` found, as JSON values: the table with why each point lost, the comparison, and the lines."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from unified_backend import hosts
from unified_backend.pbtxt import to_lines
from unified_backend.tuning.comparing import Compared, Decision
from unified_backend.tuning.run import Options, Run, short
from unified_backend.tuning.search import Goal, Tried, best_of, verdict
from unified_backend.tuning.served_point import fields_of
from unified_backend.tuning.space import Point

__all__ = ["conclusion", "report", "winning_fields"]


def winning_fields(done: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.pbtxt that won; none where the config as it is did."""
    if done.base is None or done.decision is None or done.decision.winner is None:
        return {}
    return fields_of(done.decision.winner.point, done.base, config)


def report(name: str, config: Mapping[str, Any], options: Options, done: Run, machine: Mapping[str, Any]) -> Any:
    """JSON values.

    Args:
        name: of the model.
        config: as it is written.
        machine: the host.
    """
    goal = options.goal
    best = best_of(done.rows, goal)
    decision = done.decision
    return {
        "model": name,
        "goal": goal.kind,
        "p99_ms": goal.p99,
        "machine": machine,
        "inputs": done.inputs,
        "budget_seconds": options.budget,
        "seconds": round(time.monotonic() - done.began, 1),
        "stopped": done.stopped,
        "tried": [_tried(row, done, best, goal) for row in done.rows],
        "passed_over": done.passed_over,
        "compared": [_compared(one, done) for one in done.compared],
        "winner": dataclasses.asdict(decision.winner.point) if decision and decision.winner else None,
        "ratio": decision.ratio if decision else None,
        "conclusion": conclusion(done, goal),
        "lines": to_lines(winning_fields(done, config)),
        "notes": _notes(done),
    }


def conclusion(done: Run, goal: Goal) -> str:
    """One sentence: who won, by how much, and whether that is more than noise."""
    decision = done.decision
    measure = "throughput" if goal.kind == "throughput" else "median latency"
    if decision is None:
        best = best_of(done.rows, goal)
        if best is None:
            return "nothing was measured that could win"
        first = "the config as it is" if best.point == done.base else _named(best.point, done)
        return f"best so far, not compared side by side: {first}"
    if decision.winner is None and not best_of(done.rows, goal):
        return _over_budget(done, goal)
    if decision.winner is None:
        return f"the config as it is stays: {_compared_words(decision, measure)}"
    return f"{_named(decision.winner.point, done)} wins: {_compared_words(decision, measure)}"


def _compared_words(decision: Decision, measure: str) -> str:
    if decision.ratio is None:
        return decision.why
    shown = decision.ratio if measure == "throughput" else 1 / decision.ratio
    who = "" if decision.winner else "the best that was tried has "
    return f"{who}{shown:.2f} times the {measure} of the config as it is, {decision.why}".replace(
        "as it is as it is", ""
    )


def _over_budget(done: Run, goal: Goal) -> str:
    near = min((row for row in done.rows if row.reading), key=lambda row: row.reading.p99 if row.reading else 0.0)
    assert near.reading is not None
    assert goal.p99 is not None
    return (
        f"nothing keeps a p99 of {goal.p99:g} ms; the nearest is {near.reading.p99:.3g} ms, at {near.concurrency} "
        f"request{'s' * (near.concurrency != 1)} in flight: {_named(near.point, done)}"
    )


def _named(point: Point, done: Run) -> str:
    """What a point sets otherwise than the config as it is."""
    names = {
        "engine": "engine",
        "precision": "precision",
        "instances": "instances",
        "threads": "threads",
        "max_batch_size": "max batch",
        "delay_us": "delay us",
        "preferred": "preferred batch",
    }
    base = vars(done.base) if done.base else {}
    changed = [f"{names[key]} {value}" for key, value in vars(point).items() if value != base.get(key)]
    return ", ".join(changed) or "the config as it is"


def _tried(row: Tried, done: Run, best: Tried | None, goal: Goal) -> dict[str, Any]:
    reading = row.reading
    figures = {name: getattr(reading, name) if reading else None for name in ("throughput", "p50", "p99")}
    return {
        "way": short(row.point),
        **dataclasses.asdict(row.point),
        "as_it_is": row.point == done.base,
        "concurrency": row.concurrency,
        **figures,
        "gain": row.gain,
        "verdict": verdict(row, best, goal),
    }


def _compared(one: Compared, done: Run) -> dict[str, Any]:
    values = {
        "what": _named(one.point, done),
        "point": dataclasses.asdict(one.point),
        "concurrency": one.concurrency,
        "rounds": len(one.readings),
    }
    return values | {name: dataclasses.asdict(one.spread(name)) for name in ("throughput", "p50", "p99")}


def _notes(done: Run) -> list[str]:
    """What who reads the result, or serves with the winner, should know."""
    notes = []
    if done.busy > hosts.cores():
        load = f"a load of {done.busy:.1f} on {hosts.cores()} cores"
        notes.append(f"the machine was busy when this began ({load}): on an idle one other settings may win")
    winner = done.decision.winner if done.decision else None
    if winner is None or done.base is None:
        return notes
    point, base = winner.point, done.base
    if point.max_batch_size < base.max_batch_size:
        notes.append(f"requests of more than {point.max_batch_size} samples are refused with max_batch_size so")
    if point.precision != base.precision:
        notes.append(f"{point.precision} changes the answers: `triton-unified optimize` says how far")
    if point.instances > base.instances:
        notes.append(f"{point.instances} instances hold the model {point.instances} times in memory")
    return notes
