"""A point as it is served: what the config is then, and which load it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unified_backend import hosts
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.served import Served
from unified_backend.measuring.variants import Variant
from unified_backend.repository import parameters
from unified_backend.tuning.config_file import changed_fields
from unified_backend.tuning.search import Goal, Tried
from unified_backend.tuning.space import Point

__all__ = ["fields_of", "loaded", "point_of", "variant_of"]

_RAISED = 0.9  # of the load that a budget seems to allow: latencies are not quite proportional
_TRIES = 3


def point_of(one: Served, config: Mapping[str, Any]) -> Point:
    """The config as it is: what was completed, and what the load chose.

    Args:
        config: as it is written.
    """
    [load, *_] = one.loads
    batching = one.config.get("dynamic_batching") or {}
    groups = one.config.get("instance_group") or []
    return Point(
        load["engine"],
        parameters(config).get("precision", ""),
        sum(int(group.get("count") or 1) for group in groups) or 1,
        int(load["threads"]),
        one.max_batch_size,
        int(batching.get("max_queue_delay_microseconds") or 0),
    )


def variant_of(point: Point, base: Point, config: Mapping[str, Any]) -> Variant:
    """What a point sets otherwise than the config as it is, which is `base`."""
    own = "intra_op_thread_count" in parameters(config)
    threads = base.threads if own else max(1, hosts.cores() // point.instances)
    return Variant(
        engine=point.engine if point.engine != base.engine else None,
        precision=point.precision if point.precision != base.precision else None,
        instances=point.instances if point.instances != base.instances else None,
        threads=point.threads if point.threads != threads else None,
        max_batch_size=point.max_batch_size if point.max_batch_size != base.max_batch_size else None,
        queue_delay_us=point.delay_us if point.delay_us != base.delay_us else None,
        preferred_batch_sizes=(point.preferred,) if point.preferred else (),
    )


def fields_of(point: Point, base: Point, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.pbtxt that serve a point."""
    return changed_fields(Variant().config(config), variant_of(point, base, config).config(config))


def loaded(
    point: Point, goal: Goal, concurrency: int, most: int, may_change: bool, measure: Callable[[int], Reading]
) -> Tried:
    """A point under the load that is best for it.

    With a budget, and a load that may change, it is lowered until the budget is kept, or raised while it is kept.

    Args:
        concurrency: requests in flight, to begin with.
        most: that it is raised to.
        measure: with so many requests in flight.
    """
    best = Tried(point, concurrency, measure(concurrency))
    tried = {concurrency}
    latest = best
    while goal.p99 and may_change and len(tried) < _TRIES and latest.reading:
        allowed = latest.concurrency * goal.p99 / latest.reading.p99
        wanted = min(most, max(1, int(_RAISED * allowed)))
        if wanted in tried or (goal.met_by(latest.reading) and wanted < 1.3 * latest.concurrency):
            break
        tried.add(wanted)
        latest = Tried(point, wanted, measure(wanted))
        best = latest if goal.better(latest, best, noise=0.0) else best
    return best
