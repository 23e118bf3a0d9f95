"""How long readings are, out of the latency that is expected and the budget for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from unified_backend.measuring.perf_analyzer import LASTS, STARTUP_SECONDS, WINDOWS

__all__ = ["COMPARING", "SEARCHING", "Readings"]

_LEAST, _QUICK = 0.5, 2.0  # seconds of a reading of a quick model: in a short budget, and in a long one


@dataclass(frozen=True)
class Readings:
    """A kind of readings.

    Attributes:
        latencies: that a window is to hold. Short ones miss a share of a slow model's requests, but much the same one
            at every point: enough to search, and twice as long to compare.
        share: of the budget that one may take, however slow the model is.
    """

    latencies: int
    share: float

    def told(self, latency: float, budget: float) -> float:
        """Seconds that perf_analyzer is told to measure.

        Args:
            latency: that a request is expected to have, in milliseconds.
            budget: seconds for the whole search.
        """
        quick = min(max(_LEAST, budget / 90), _QUICK)
        return max(quick, min(WINDOWS * self.latencies * latency / 1e3, self.share * budget))

    def taken(self, latency: float, budget: float) -> float:
        """Seconds that it takes in fact."""
        return LASTS * self.told(latency, budget) + STARTUP_SECONDS


SEARCHING = Readings(8, 1 / 45)
COMPARING = Readings(16, 1 / 24)
