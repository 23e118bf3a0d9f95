"""Custom metrics, gathered in the stub and handed over once a second: each call costs as much as a request."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from unified_backend.spent import Spent

__all__ = ["BATCH_SIZE_BUCKETS", "ServerMetrics"]

logger = logging.getLogger(__name__)

BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_FLUSH_SECONDS = 1.0
_REASON_CHARACTERS = 120  # of a label's value
_FAMILIES = {
    "unified_load_seconds": ("GAUGE", "Seconds that each phase of the last load took"),
    "unified_cache_lookups_total": ("COUNTER", "Lookups in the cache by kind of entry and result"),
    "unified_cache_remote_failures_total": ("COUNTER", "What the remote cache tier failed to do"),
    "unified_engine_info": ("GAUGE", "1 for the engine that answers"),
    "unified_engine_swaps_total": ("COUNTER", "Engines that took over from another while the model was served"),
    "unified_engine_build_failures_total": ("COUNTER", "Engines that could not be built in the background, and why"),
    "unified_request_errors_total": ("COUNTER", "Requests answered with an error, by Triton error code"),
    "unified_profile_misses_total": ("COUNTER", "Requests outside every optimization profile of the engine"),
    "unified_stage_duration_us": ("COUNTER", "Microseconds in each stage, the engine, or each step of a pipeline"),
    # A Prometheus histogram in three counters: Triton's own histogram takes one call an observation.
    "unified_batch_size_bucket": ("COUNTER", "Executions whose batch size was at most `le`"),
    "unified_batch_size_sum": ("COUNTER", "Samples executed"),
    "unified_batch_size_count": ("COUNTER", "Executions"),
}

_Label = tuple[tuple[str, str], ...]


class ServerMetrics:
    """The metrics of one model instance; does nothing on a server that has metrics switched off.

    Attributes:
        batch_sizes: runs of the engine by batch size, counted by the executor.
        errors: requests answered with an error, by Triton error code, likewise.
        profile_misses: requests outside every optimization profile, by engine, counted by the runner.
        spent: time by stage, likewise.
    """

    def __init__(self, pb_utils: Any, model: str, version: str) -> None:
        # A metric of equal labels is one object in the server, counted by each stub for itself: whichever stub goes
        # first frees it under the others (server#8663). With shared labels the server's heap broke, and a load hung for
        # ever, within 225 reloads; with the process among them 500 went well.
        self._own = {"model": model, "version": version, "pid": str(os.getpid())}
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, _Label], Any] = {}
        self.batch_sizes: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.profile_misses: Counter[str] = Counter()
        self.spent = Spent()
        counted = ("batch_sizes", "errors", "profile_misses", "spent")
        self._sent: dict[str, Counter[Any]] = {name: Counter() for name in counted}
        self._wake = threading.Event()
        self._stopped = False
        try:
            for name, (kind, description) in _FAMILIES.items():
                self._families[name] = pb_utils.MetricFamily(
                    name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind)
                )
        except (AttributeError, pb_utils.TritonModelException) as error:
            self._families = {}
            logger.info('metrics off model=%s reason="%s"', model, error)
        # A daemon, or it would keep the stub from ending.
        self._thread = threading.Thread(target=self._flush_for_ever, name="unified-metrics", daemon=True)
        if self._families:
            self._thread.start()

    def load(
        self, seconds: Mapping[str, float], lookups: Mapping[str, str], engine: str, remote_failures: int | None
    ) -> None:
        """Report one load: seconds by phase, cache lookups by kind, and the engine that answers.

        Args:
            remote_failures: of the cache's remote tier; None without one.
        """
        if not self._families:
            return
        for phase, value in seconds.items():
            self._metric("unified_load_seconds", phase=phase).set(value)
        for kind, origin in lookups.items():
            self._metric("unified_cache_lookups_total", kind=kind, result=origin).increment(1)
        self._metric("unified_engine_info", engine=engine).set(1)
        if remote_failures is not None:
            self._metric("unified_cache_remote_failures_total").increment(remote_failures)

    def swapped(self, old: str, new: str) -> None:
        """Report that one engine took over from another."""
        if self._families:
            self._metric("unified_engine_info", engine=old).set(0)
            self._metric("unified_engine_info", engine=new).set(1)
            self._metric("unified_engine_swaps_total", old=old, new=new).increment(1)

    def build_failed(self, engine: str, reason: str) -> None:
        """Report an engine that could not be built in the background."""
        if self._families:
            short = " ".join(reason.split())[:_REASON_CHARACTERS]
            self._metric("unified_engine_build_failures_total", engine=engine, reason=short).increment(1)

    def close(self) -> None:
        """Hand over what is left and stop."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._families:
            self._flush()
        self._metrics.clear()
        self._families.clear()

    def _flush_for_ever(self) -> None:
        while not self._stopped:
            self._wake.wait(_FLUSH_SECONDS)
            self._flush()

    def _flush(self) -> None:
        sizes, errors = self._news("batch_sizes"), self._news("errors")
        for code, count in errors.items():
            self._metric("unified_request_errors_total", code=code).increment(count)
        for engine, count in self._news("profile_misses").items():
            self._metric("unified_profile_misses_total", engine=engine).increment(count)
        for stage, microseconds in self._news("spent").items():
            self._metric("unified_stage_duration_us", stage=stage).increment(microseconds)
        if not sizes:
            return
        for bound in (*map(float, BATCH_SIZE_BUCKETS), float("inf")):
            below = sum(count for size, count in sizes.items() if size <= bound)
            label = "+Inf" if bound == float("inf") else str(int(bound))
            self._metric("unified_batch_size_bucket", le=label).increment(below)
        self._metric("unified_batch_size_sum").increment(sum(size * count for size, count in sizes.items()))
        self._metric("unified_batch_size_count").increment(sizes.total())

    def _news(self, name: str) -> Counter[Any]:
        """What was counted since the last flush. The executor counts on meanwhile: a copy is compared with a copy."""
        now = Counter(getattr(self, name))
        news = now - self._sent[name]
        self._sent[name] = now
        return news

    def _metric(self, family: str, **labels: str) -> Any:
        key = (family, tuple(labels.items()))
        if key not in self._metrics:
            self._metrics[key] = self._families[family].Metric(labels={**self._own, **labels})
        return self._metrics[key]
