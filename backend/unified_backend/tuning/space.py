"""What `tune` may set of a model, and to which values on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["ALTERNATIVES", "AXES", "Point", "Space", "axes"]

_DELAYS = (0, 200, 1000, 4000)  # microseconds
_MOST_INSTANCES_ON_A_GPU = 4


@dataclass(frozen=True)
class Point:
    """One way to serve a model.

    Attributes:
        engine: the parameter `engine`.
        precision: the parameter `precision`; "" as the model came.
        instances: of the model's instance group.
        threads: `intra_op_thread_count` of each instance.
        max_batch_size: 0 for a model that takes no batches.
        delay_us: `max_queue_delay_microseconds` of dynamic batching.
        preferred: the one `preferred_batch_size`; 0 for none.
    """

    engine: str = "auto"
    precision: str = ""
    instances: int = 1
    threads: int = 1
    max_batch_size: int = 0
    delay_us: int = 0
    preferred: int = 0


@dataclass(frozen=True)
class Space:
    """The values there are.

    Attributes:
        engines, precisions: to try beside the point's own.
        cores: that the server may use.
        gpu: the engines run on a GPU, where instances share what threads would be on a processor.
        most_batch: largest max_batch_size; 0 for a model that takes no batches.
        in_flight: requests that there may be at once: batches do not get larger, whatever is allowed.
        longest_delay_us: of those that the latency budget leaves room for.
        instances: the instance group may be changed.
        alone: one request at a time: there is nothing that instances or batches could serve side by side.
    """

    engines: Sequence[str] = ()
    precisions: Sequence[str] = ()
    cores: int = 1
    gpu: bool = False
    most_batch: int = 0
    in_flight: int = 1_000_000
    longest_delay_us: int = _DELAYS[-1]
    instances: bool = True
    alone: bool = False


Directions = Iterator[list[Point]]


def _engines(point: Point, space: Space) -> Directions:
    for name in space.engines:
        if name != point.engine:
            yield [dataclasses.replace(point, engine=name)]


def _precisions(point: Point, space: Space) -> Directions:
    for name in space.precisions:
        if name != point.precision:
            yield [dataclasses.replace(point, precision=name)]


def _instances(point: Point, space: Space) -> Directions:
    """Doubled or halved; on a processor the cores are divided among them."""
    if space.alone or not space.instances:
        return
    most = _MOST_INSTANCES_ON_A_GPU if space.gpu else space.cores
    for counts in (_raised(point.instances, most), _lowered(point.instances)):
        yield [
            dataclasses.replace(
                point, instances=count, threads=point.threads if space.gpu else max(1, space.cores // count)
            )
            for count in counts
        ]


def _threads(point: Point, space: Space) -> Directions:
    if space.gpu:
        return
    for counts in (_lowered(point.threads), _raised(point.threads, space.cores)):
        yield [dataclasses.replace(point, threads=count) for count in counts]


def _max_batch_size(point: Point, space: Space) -> Directions:
    if space.alone or not space.most_batch or not point.max_batch_size:
        return
    now = point.max_batch_size
    smaller = [size for size in _lowered(now, 4) if size < space.in_flight]
    larger = _raised(now, min(space.most_batch, space.in_flight), 4)
    for sizes in (smaller, larger):
        yield [
            dataclasses.replace(point, max_batch_size=size, preferred=point.preferred if point.preferred < size else 0)
            for size in sizes
        ]


def _delay(point: Point, space: Space) -> Directions:
    if not space.most_batch or point.max_batch_size < 2:
        return
    values = [value for value in _DELAYS if value <= space.longest_delay_us]
    if not space.alone:
        yield [dataclasses.replace(point, delay_us=value) for value in values if value > point.delay_us]
    shorter = [value for value in reversed(values) if value < point.delay_us]
    yield [dataclasses.replace(point, delay_us=value, preferred=point.preferred if value else 0) for value in shorter]


def _preferred(point: Point, space: Space) -> Directions:
    """Half of the largest: only a batch that waits can be sent before it is full."""
    if point.delay_us and point.max_batch_size >= 4:
        yield [dataclasses.replace(point, preferred=0 if point.preferred else point.max_batch_size // 2)]


# In the order in which they are searched: what usually changes most comes first.
AXES: Mapping[str, Callable[[Point, Space], Directions]] = MappingProxyType(
    {
        "engine": _engines,
        "precision": _precisions,
        "instances": _instances,
        "threads": _threads,
        "max_batch_size": _max_batch_size,
        "queue delay": _delay,
        "preferred_batch_size": _preferred,
    }
)


def axes(start: Point) -> Iterator[tuple[str, Callable[[Point, Space], Directions]]]:
    """The settings in the order in which they are searched from here: a delay that is set may be all that there is to a
    request's time, and comes first."""
    return iter(sorted(AXES.items(), key=lambda axis: not (start.delay_us and axis[0] == "queue delay")))


# Settings whose values have no order: every one of them is tried.
ALTERNATIVES = frozenset({"engine", "precision"})


def _raised(value: int, most: int, factor: int = 2) -> list[int]:
    """Multiplied again and again; `most` is the last, whatever it is."""
    found = []
    while value < most:
        value = min(factor * value, most)
        found.append(value)
    return found


def _lowered(value: int, factor: int = 2) -> list[int]:
    """Divided again and again; 1 is the last."""
    found = []
    while value > 1:
        value = max(value // factor, 1)
        found.append(value)
    return found
