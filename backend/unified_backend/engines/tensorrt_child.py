"""A TensorRT build in a process of its own, watched: a crash is a message, and every ten seconds have a line."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import unified_backend
from unified_backend import hosts
from unified_backend.errors import EngineError

__all__ = ["PHASE", "build_in_child"]

logger = logging.getLogger(__name__)

PHASE = "@phase "  # begins a line in which the child says what it is at
_REPORT_SECONDS = 10.0
_LAST_LINES, _LAST_WORDS = 5, 300  # of what a process said before it died


def build_in_child(engine: str, job: Mapping[str, Any], seconds: int, gpu: int | None) -> dict[str, Any]:
    """What `tensorrt_build` answers to a job.

    Args:
        engine: name of the engine, for messages; the job's `label` is the model's.
        seconds: time limit; 0 for none.
        gpu: the device that the child sees as its only one; None where none is needed.

    Raises:
        EngineError: the builder's own; or it crashed, was killed, or took longer.
    """
    label = str(job["label"])
    what = f"{label}: {engine} did not build"
    package = str(Path(unified_backend.__file__).parent.parent)
    paths = (package, *(path for path in sys.path if path), os.environ.get("PYTHONPATH"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "POLYGRAPHY_USE_TENSORRT_RTX": str(int(engine == "tensorrt_rtx")),
        "POLYGRAPHY_AUTOINSTALL_DEPS": "0",
        **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": _visible(gpu)}),
    }
    try:
        # -P: what lies in the current directory is not what is imported.
        child = subprocess.Popen(
            [hosts.interpreter(), "-P", "-m", "unified_backend.engines.tensorrt_build"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
    except OSError as error:
        raise EngineError(what, f"no process could be started ({error})", "Mend that, and load it again") from None
    watched = _Watched(child)
    try:
        watched.give(json.dumps(job))
        _wait(child, watched, engine, label, seconds)
    except subprocess.TimeoutExpired:
        why = f"it was not done after {seconds} s, at: {watched.phase}"
        raise EngineError(what, why, "Raise the parameter `build_seconds`, or lower the optimization level") from None
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
    answer = watched.answer()
    if answer is None:
        do = "Give the host more memory, or set the parameter `engine` to another one"
        raise EngineError(what, _death(child.returncode, watched), do)
    if "error" in answer:
        raise EngineError(*answer["error"])
    return dict(answer["facts"])


class _Watched:
    """Reads what a child writes, so that it never waits for a reader."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.phase = "starting"
        self.lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._child = child
        self._answer = ""
        self._threads = [
            threading.Thread(target=target, args=(stream,), daemon=True)
            for target, stream in ((self._read_log, child.stderr), (self._read_answer, child.stdout))
        ]
        for thread in self._threads:
            thread.start()

    def give(self, job: str) -> None:
        assert self._child.stdin
        try:
            with self._child.stdin as pipe:
                pipe.write(job)
        except BrokenPipeError:
            return  # it died before it read; how, its exit tells

    def answer(self) -> dict[str, Any] | None:
        for thread in self._threads:
            thread.join()
        try:
            return dict(json.loads(self._answer))
        except ValueError:
            return None

    def _read_log(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith(PHASE):
                self.phase = line.removeprefix(PHASE).strip()
            elif line.strip():
                self.lines.append(line.strip())

    def _read_answer(self, stream: IO[str]) -> None:
        self._answer = stream.read()


def _wait(child: subprocess.Popen[str], watched: _Watched, engine: str, label: str, seconds: int) -> None:
    began = time.monotonic()
    while True:
        left = began + seconds - time.monotonic() if seconds else _REPORT_SECONDS
        try:
            child.wait(max(0.0, min(_REPORT_SECONDS, left)))
            return
        except subprocess.TimeoutExpired:
            took = time.monotonic() - began
            if seconds and took >= seconds:
                raise
            logger.info('building model=%s engine=%s seconds=%.0f phase="%s"', label, engine, took, watched.phase)


def _visible(gpu: int) -> str:
    """The instance's GPU, as CUDA_VISIBLE_DEVICES of the child names it."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return given[gpu] if gpu < len(given) else str(gpu)


def _death(code: int, watched: _Watched) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    memory = " (the host ran out of memory, perhaps)" if code == -signal.SIGKILL else ""
    words = " ".join(watched.lines)[-_LAST_WORDS:]
    return f"its process {how}{memory} at: {watched.phase}" + (f": {words}" if words else "")
