"""How long readings are, out of the latency that is expected and the budget for all of them."""

from __future__ import annotations

from unified_backend.measuring.perf_analyzer import LASTS, LONGEST_WINDOW, STARTUP_SECONDS, WINDOWS

__all__ = ["COMPARING", "SEARCHING", "measured_seconds", "reading_seconds"]

# Latencies in a window. Short ones miss a share of a slow model's requests, much the same one at every point: enough to
# search, and twice as long to compare.
SEARCHING, COMPARING = 8, 16
_QUICK = (0.5, 2.0)  # seconds for a quick model: at least, and at most
_SHARE = 1 / 90  # of the budget


def measured_seconds(latency: float, latencies: int, budget: float) -> float:
    """What perf_analyzer is told.

    Args:
        latency: that a request is expected to have, in milliseconds.
        latencies: that a window is to hold.
        budget: seconds for the whole search.
    """
    least, most = _QUICK
    quick = min(max(least, _SHARE * budget), most)
    return max(quick, WINDOWS * min(latencies * latency / 1e3, LONGEST_WINDOW))


def reading_seconds(latency: float, latencies: int, budget: float) -> float:
    """How long that takes in fact."""
    return LASTS * measured_seconds(latency, latencies, budget) + STARTUP_SECONDS
