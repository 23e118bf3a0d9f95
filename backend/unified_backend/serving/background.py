"""Builds the better engine while a model is served by the next one, and has it take over when it is verified."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unified_backend.cache import Cache
from unified_backend.errors import UnifiedError
from unified_backend.later import Builder
from unified_backend.loading import Loaded, Report, load
from unified_backend.serving.executor import Plan
from unified_backend.serving.metrics import ServerMetrics
from unified_backend.serving.swap import Executes, Swap
from unified_backend.serving.warmup import warm_up

__all__ = ["Background"]

logger = logging.getLogger(__name__)


class Background:
    """The thread that waits for a better engine; it tries those that the load put off, the best first.

    Args:
        loaded: what answers meanwhile.
        folder: the version folder.
        config: the completed config.
        swap: takes the new engine.
        made_executor: makes an executor of what was loaded.
    """

    def __init__(
        self,
        loaded: Loaded,
        folder: Path,
        config: Mapping[str, Any],
        cache: Cache,
        swap: Swap,
        made_executor: Callable[[Loaded, Plan], Executes],
        metrics: ServerMetrics,
    ) -> None:
        self._loaded, self._cache, self._swap, self._metrics = loaded, cache, swap, metrics
        self._made_executor = made_executor
        self._builder = Builder(loaded.described, folder, config)
        self._label = loaded.described.source.label
        # A daemon, or it would keep the stub from ending; the child ends with the thread.
        self._thread = threading.Thread(target=self._work, name="unified-background", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the build and wait for the thread, which is quick: at most, it is loading an engine that was built."""
        self._builder.stop()
        self._thread.join()

    def _work(self) -> None:
        for engine in self._loaded.put_off:
            try:
                if self._taken(engine):
                    return
                continue
            except UnifiedError as error:
                reason = error.why
            except Exception as error:
                logger.exception("background build failed unexpectedly model=%s engine=%s", self._label, engine)
                reason = f"{type(error).__name__}: {error}"
            if self._builder.stopped:
                return
            logger.warning(
                'background build failed model=%s engine=%s serving=%s reason="%s"',
                self._label,
                engine,
                self._loaded.engine,
                reason,
            )
            self._metrics.build_failed(engine, reason)

    def _taken(self, engine: str) -> bool:
        """Build an engine, and let it answer; False if the model is being unloaded."""
        began = time.monotonic()
        logger.info("building in background model=%s engine=%s seconds=0", self._label, engine)
        self._builder.build(engine)
        described = dataclasses.replace(
            self._loaded.described,
            report=Report(),
            settings=dataclasses.replace(self._loaded.described.settings, require_cached=True),
        )
        better = load(described, self._cache, only=engine)
        plan = warm_up(better, self._cache)
        if self._builder.stopped:
            better.runner.close()
            return False
        self._swap.exchange(self._made_executor(better, plan), better.runner.close)
        logger.info(
            "swapped model=%s from=%s to=%s seconds=%.1f",
            self._label,
            self._loaded.engine,
            engine,
            time.monotonic() - began,
        )
        self._metrics.swapped(self._loaded.engine, engine)
        return True
