"""Requests outside every optimization profile: answered by the next rung, loaded when first needed, and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from unified_backend.engines import Runner
from unified_backend.engines.profiles import bounds, fitting, shapes_of
from unified_backend.errors import RequestError
from unified_backend.tensorrt_options import Profile
from unified_backend.tensors import Array

__all__ = ["MissRunner"]

logger = logging.getLogger(__name__)


class MissRunner:
    """An engine that takes the shapes of its profiles, with another behind it for all others.

    Args:
        label: `model/version`, for the log.
        engine: name of the engine that has the profiles.
        first: that engine.
        profiles: what it takes.
        load_next: loads the other one; None to refuse.

    Attributes:
        misses: requests outside every profile, by the name of the engine that has them.
    """

    def __init__(
        self,
        label: str,
        engine: str,
        first: Runner,
        profiles: Sequence[Profile],
        load_next: Callable[[], Runner] | None,
    ) -> None:
        self.signature = first.signature
        self.misses: Counter[str] = Counter()
        self._label, self._engine, self._first = label, engine, first
        self._profiles, self._load_next = profiles, load_next
        self._next: Runner | None = None

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        shapes = shapes_of(feeds)
        if fitting(self._profiles, shapes) is not None:
            return self._first.run(feeds, outputs, into)
        self.misses[self._engine] += 1
        found = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        if self._load_next is None:
            raise RequestError(
                f"the request's shapes are outside the engine's profiles: {found}",
                f"the engine was built for {bounds(self._profiles)}",
                "Send another shape, widen the parameter `shapes`, or set `profile_miss` to next",
            )
        if self._next is None:
            logger.warning(
                'profile missed model=%s engine=%s request="%s" profiles="%s" next="the next engine answers such '
                'requests; name their shapes with the parameter shapes"',
                self._label,
                self._engine,
                found,
                bounds(self._profiles),
            )
            self._next = self._load_next()
        return self._next.run(feeds, outputs, into)

    def close(self) -> None:
        """Free both."""
        self._first.close()
        if self._next is not None:
            self._next.close()
