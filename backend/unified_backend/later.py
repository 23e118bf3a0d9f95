"""Builds and verifies an engine whose build a load has put off, in a child process of low priority.

`python -m unified_backend.later` is that process; it reads one JSON object and prints one.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import unified_backend
from unified_backend import hosts, logs
from unified_backend.engines.apart import death
from unified_backend.errors import EngineError, UnifiedError
from unified_backend.gpus import Gpu
from unified_backend.loading import Described, build_only, describe, open_cache
from unified_backend.stopping import clean_up_when_stopped

__all__ = ["Builder"]

logger = logging.getLogger(__name__)

_NICENESS = 10  # a tenth of a core against one busy thread: it gives way, and is done some day
_REPORT_SECONDS = 10.0
_PATIENCE_SECONDS = 2.0  # for a child that is told to end, to remove what it was making
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Builder:
    """Builds engines of one model, one child process at a time.

    Args:
        described: the model.
        folder: its version folder.
        config: its completed config.
    """

    def __init__(self, described: Described, folder: Path, config: Mapping[str, Any]) -> None:
        self._label = described.source.label
        gpu = described.settings.gpu
        self._job = {
            "label": self._label,
            "folder": str(folder),
            "config": dict(config),
            "gpu": dataclasses.asdict(gpu) if gpu else None,
        }
        self._stopped = threading.Event()
        self._child: subprocess.Popen[str] | None = None
        self._starting = threading.Lock()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def build(self, engine: str) -> None:
        """Have the engine in the cache; the calling thread waits, and must live as long as the child does.

        Raises:
            EngineError: it could not be built, does not compute what the model does, or `stop` was called.
        """
        what, began = f"{self._label}: {engine} was not built", time.monotonic()
        child = self._started()
        if child is None:
            raise EngineError(what, "the model is being unloaded", "Load it again")
        given: str | None = json.dumps({**self._job, "engine": engine})
        while True:
            try:
                output, errors = child.communicate(given, timeout=_REPORT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                given = None
                seconds = time.monotonic() - began
                logger.info("building in background model=%s engine=%s seconds=%.0f", self._label, engine, seconds)
        try:
            answer = json.loads(output)
        except ValueError:
            ended = subprocess.CompletedProcess("", child.returncode, output, errors)
            raise EngineError(what, death(ended), "Load the model again, or choose another engine") from None
        if "error" in answer:
            raise EngineError(*answer["error"])

    def stop(self) -> None:
        """End the child, if there is one; none starts afterwards."""
        with self._starting:
            self._stopped.set()
        child = self._child
        if child is None or child.poll() is not None:
            return
        child.terminate()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if child.poll() is None:
            child.kill()

    def _started(self) -> subprocess.Popen[str] | None:
        package = str(Path(unified_backend.__file__).parent.parent)
        paths = (package, *(path for path in sys.path if path), os.environ.get("PYTHONPATH"))
        with self._starting:
            if self.stopped:
                return None
            # -P: what lies in the current directory is not what is imported.
            self._child = subprocess.Popen(
                [hosts.interpreter(), "-P", "-m", "unified_backend.later"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )
            return self._child


def _build(job: Mapping[str, Any]) -> dict[str, Any]:
    gpu = job["gpu"] and Gpu(**{**job["gpu"], "compute_capability": tuple(job["gpu"]["compute_capability"])})
    try:
        with open_cache() as cache:
            described = describe(job["label"], Path(job["folder"]), job["config"], cache, True, gpu)
            build_only(described, job["engine"], cache)
    except UnifiedError as error:
        return {"error": [error.what, error.why, error.do]}
    return {}


def _main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    clean_up_when_stopped()
    os.nice(_NICENESS)
    # What native libraries print goes where it is not taken for the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logs.to_standard_error(logging.WARNING)
    with answers:
        json.dump(_build(json.load(sys.stdin)), answers)


if __name__ == "__main__":
    _main()
