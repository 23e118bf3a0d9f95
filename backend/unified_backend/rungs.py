"""What became of each engine on the ladder, told as it happens: one line a rung."""

from __future__ import annotations

import dataclasses
import logging

__all__ = ["Ladder", "Rung"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Rung:
    """What became of one engine.

    Attributes:
        reason: why it was taken, or why it was not.
    """

    engine: str
    taken: bool
    reason: str


class Ladder:
    """The rungs that a load has looked at, in their order.

    Args:
        label: `model/version`.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self.rungs: list[Rung] = []

    @property
    def misses(self) -> list[str]:
        """Why each rung that was not taken was not."""
        return [f"{rung.engine}: {rung.reason}" for rung in self.rungs if not rung.taken]

    def missed(self, engine: str, reason: str, level: int = logging.INFO) -> None:
        """An engine is not taken."""
        self._add(Rung(engine, False, reason), level)

    def took(self, engine: str, reason: str) -> None:
        """An engine is taken."""
        self._add(Rung(engine, True, reason), logging.INFO)

    def _add(self, rung: Rung, level: int) -> None:
        self.rungs.append(rung)
        taken = "yes" if rung.taken else "no"
        logger.log(level, 'rung model=%s engine=%s taken=%s reason="%s"', self._label, rung.engine, taken, rung.reason)
