"""Where the time of requests goes inside a model: its stages, its engine, a pipeline's steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ENGINE", "POSTPROCESS", "PREPROCESS", "Spent"]

PREPROCESS, ENGINE, POSTPROCESS = "preprocess", "engine", "postprocess"


class Spent(Counter[str]):
    """Microseconds of work by stage, since the model was loaded. Of each stage, one thread counts at a time."""

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        """Count the time of the block, which may fail."""
        began = time.perf_counter_ns()
        try:
            yield
        finally:
            self[stage] += (time.perf_counter_ns() - began) // 1000
