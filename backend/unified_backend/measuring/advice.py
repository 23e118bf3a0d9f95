"""What a result says to do, in words."""

from __future__ import annotations

from unified_backend.measuring.result import Result

__all__ = ["advice"]


def advice(result: Result) -> list[str]:
    """Sentences, each of which the rounds bear out."""
    return []
