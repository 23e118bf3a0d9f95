"""The same session called in this process, as a baseline for what is served."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from unified_backend.measuring.perf_analyzer import Reading

__all__ = ["in_process", "open_session"]


def open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """The session that each baseline opens, here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def in_process(
    session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray[Any, Any]], concurrency: int, seconds: float
) -> Reading:
    """Call `session` from `concurrency` threads, each as soon as its last call returned, for `seconds`.

    One call runs at a time, as in the one instance of every served model: equal thread settings would otherwise give
    this side as many cores as there are callers.
    """
    turn, latencies = threading.Lock(), [list[float]() for _ in range(concurrency)]
    session.run(None, feed)
    start = time.perf_counter()
    end = start + seconds

    def call(mine: list[float]) -> None:
        asked = time.perf_counter()
        while asked < end:
            with turn:
                session.run(None, feed)
            answered = time.perf_counter()
            mine.append(answered - asked)
            asked = answered

    callers = [threading.Thread(target=call, args=(mine,)) for mine in latencies]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    elapsed = time.perf_counter() - start
    every = [latency for mine in latencies for latency in mine]
    return Reading(len(every) / elapsed, 1000 * median(every))
