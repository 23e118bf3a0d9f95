"""Model versions handled each in a process of its own, so that a crash is a result.

Such a process is `python -m MODULE MODEL_DIR VERSION ...`; it prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import unified_backend
from unified_backend import logs
from unified_backend.stopping import clean_up_when_stopped

__all__ = ["Ended", "Target", "answer", "each_apart"]

_REPORT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Target:
    """One version of a model of this backend."""

    model_dir: Path
    version: int

    @property
    def label(self) -> str:
        """`model/version`."""
        return f"{self.model_dir.name}/{self.version}"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a target's process ended.

    Attributes:
        result: the object that it printed; None of one that died.
        reason: how that one did.
        log: what it wrote to standard error.
    """

    target: Target
    result: Mapping[str, Any] | None
    reason: str
    seconds: float
    log: str


def each_apart(
    wanted: Sequence[Target], jobs: int, module: str, arguments: Callable[[Target], Sequence[str]]
) -> Iterator[Ended | Sequence[Target]]:
    """Run a module for every target, `jobs` at a time.

    Args:
        arguments: of the module, after the model's directory and the version.

    Returns:
        each end as it comes, and every ten seconds in which there is none, the targets that are being worked on.
    """
    with ThreadPoolExecutor(jobs) as pool:
        running: dict[Target, subprocess.Popen[str]] = {}
        stopped = threading.Event()
        pending = {
            pool.submit(
                _run_one,
                target,
                [module, str(target.model_dir), str(target.version), *arguments(target)],
                running,
                stopped,
            )
            for target in wanted
        }
        try:
            while pending:
                done, pending = wait(pending, _REPORT_SECONDS, FIRST_COMPLETED)
                yield from (future.result() for future in done)
                if not done:
                    yield sorted(running, key=lambda target: target.label)
        finally:
            stopped.set()
            _cancel(pending, running)


def answer(find_out: Callable[[], Mapping[str, Any]]) -> None:
    """What such a process does: print the object that is found out, where libraries that print cannot reach."""
    clean_up_when_stopped()
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logs.to_standard_error(logging.WARNING)
    with results:
        json.dump(find_out(), results)


def _cancel(pending: set[Future[Ended]], running: Mapping[Target, subprocess.Popen[str]]) -> None:
    for future in pending:
        future.cancel()
    for child in list(running.values()):
        child.terminate()


def _run_one(
    target: Target, module: Sequence[str], running: dict[Target, subprocess.Popen[str]], stopped: threading.Event
) -> Ended:
    began = time.monotonic()
    # -P: what lies in the current directory is not what is imported.
    command = [sys.executable, "-P", "-m", *module]
    package = str(Path(unified_backend.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": path},
    )
    running[target] = child
    if stopped.is_set():
        child.terminate()
    stdout, stderr = child.communicate()
    del running[target]
    seconds = round(time.monotonic() - began, 3)
    try:
        return Ended(target, json.loads(stdout), "", seconds, stderr)
    except ValueError:
        return Ended(target, None, _death(child.returncode, stderr), seconds, stderr)


def _death(code: int, stderr: str) -> str:
    """How a process ended that left no result."""
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
    return f"its process {how}" + (f": {last.strip()}" if last else "")
