"""One job in one process of a toolchain: watched, limited, and gone with everything it started when it ends."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.amounts import amount
from unified_backend.errors import ConfigError, ConversionError, DamagedSourceError, UnifiedError

__all__ = ["Done", "Limits", "run"]

logger = logging.getLogger(__name__)

_RUN_WORKER = Path(__file__).parent / "run_worker.py"
_WATCH_SECONDS = 0.1
_REPORT_SECONDS = 10.0
_MOST_EVENTS = 16 * 2**20  # bytes: a result has names, types and shapes, and no tensors
_DYING_SECONDS = 5.0  # a process in an uninterruptible wait may take longer, and is not waited for
_LOG = "worker.log"
_LAST_LINES = 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a job may take: seconds of wall clock, bytes of memory of all its processes, bytes of one file."""

    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclasses.dataclass(frozen=True)
class Done:
    """A job that ended well: what its worker returned, and what it took."""

    result: dict[str, Any]
    seconds: float
    peak_rss_bytes: int


def run(python: Path, worker: str, job: Mapping[str, Any], folder: Path, limits: Limits, label: str) -> Done:
    """Run a worker on a job.

    Args:
        python: of the toolchain.
        worker: a module with `work(job, folder, tell)`.
        job: JSON values.
        folder: empty; the worker writes there, and has its home and temporary folder there.
        label: the model, for messages and the log.

    Raises:
        ConfigError: the worker says that a parameter is wrong.
        ConversionError: the worker failed, crashed, hung, answered garbage, or reached a limit.
    """
    began = time.monotonic()
    with _started(python, worker, folder) as (child, events):
        watch = _Watch(child, limits, label, began)
        assert child.stdin
        with suppress(BrokenPipeError):  # it died at once, which is told below
            child.stdin.write(json.dumps({**job, "folder": str(folder), "disk_bytes": limits.disk_bytes}).encode())
            child.stdin.close()
        outcome = watch.follow(events)
        if outcome is None:
            why = _death(child)
        elif outcome["event"] == "error":
            _raise_own(outcome, label, folder)
            why = f"{outcome.get('type')}: {outcome.get('message')}"
        else:
            return Done(dict(outcome["result"]), time.monotonic() - began, watch.peak)
    raise ConversionError(
        f"{label}: the {worker.rpartition('.')[2]} toolchain failed in phase {watch.phase}",
        _ascii("; ".join((why, *_last_words(folder, why))), folder),
        "Copy the file again if it may be damaged, serve it by an engine that takes it as it is (parameter `engine`), "
        "or export the model again",
    )


class _Watch:
    """Follows a child's events while it holds it to its limits."""

    def __init__(self, child: subprocess.Popen[bytes], limits: Limits, label: str, began: float) -> None:
        self.phase = "starting"
        self.peak = 0
        self._child = child
        self._limits = limits
        self._label = label
        self._began = began

    def follow(self, events: int) -> dict[str, Any] | None:
        """The event that ends the job; None if the child ended without one.

        Raises:
            ConversionError: a limit was reached, or what it sends are no events.
        """
        buffer, received, reported = b"", 0, time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ)
            while True:
                ready = selector.select(_WATCH_SECONDS)
                self._hold_to_limits()
                if time.monotonic() - reported > _REPORT_SECONDS:
                    reported = time.monotonic()
                    self._report()
                if not ready:
                    continue
                chunk = os.read(events, 65536)
                received += len(chunk)
                if not chunk:
                    return None
                if received > _MOST_EVENTS:
                    raise self._garbage(f"it sent more than {_MOST_EVENTS} bytes")
                *lines, buffer = (buffer + chunk).split(b"\n")
                for event in map(self._parsed, lines):
                    if event["event"] != "phase":
                        return event
                    self.phase = _ascii(str(event.get("phase")))
                    self._report()

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        kinds = {"phase": str, "error": str, "result": dict}
        kind = event.get("event") if isinstance(event, dict) else None
        if kind not in kinds or (kind == "result" and not isinstance(event.get("result"), dict)):
            raise self._garbage(f"what it sent is no event: {line[:80]!r}")
        return dict(event)

    def _garbage(self, why: str) -> ConversionError:
        return ConversionError(
            f"{self._label}: the toolchain's answer cannot be used", why, "Report it, with the model"
        )

    def _report(self) -> None:
        seconds = time.monotonic() - self._began
        logger.info("converting model=%s phase=%s seconds=%.0f", self._label, self.phase, seconds)

    def _hold_to_limits(self) -> None:
        now = _memory(self._child.pid)
        self.peak = max(self.peak, now)
        if now > self._limits.memory_bytes:
            raise ConversionError(
                f"{self._label}: the conversion was stopped in phase {self.phase}",
                f"it took {amount(now)} of memory, and {amount(self._limits.memory_bytes)} are allowed",
                'Raise the parameter "conversion_memory", or convert it elsewhere',
            )
        if self._limits.seconds and time.monotonic() - self._began > self._limits.seconds:
            raise ConversionError(
                f"{self._label}: the conversion was stopped in phase {self.phase}",
                f"it was not done after {self._limits.seconds:.0f} s",
                'Raise the parameter "conversion_seconds", or convert it elsewhere',
            )


def _raise_own(event: Mapping[str, Any], label: str, folder: Path) -> None:
    """Raise what the worker itself raised, if it is an error of ours: it names the thing, the reason, the next step."""
    parts = event.get("parts")
    if isinstance(parts, list) and len(parts) == 3:
        what, why, do = (_ascii(str(part), folder) for part in parts)
        kinds: dict[Any, type[UnifiedError]] = {kind.__name__: kind for kind in (ConfigError, DamagedSourceError)}
        kind = kinds.get(event.get("type"), ConversionError)
        raise kind(f"{label}: {what}", why, do)


@contextmanager
def _started(python: Path, worker: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The child, and the end of the pipe its events come from; its process group is killed at the end."""
    reading, writing = os.pipe()
    try:
        with (folder / _LOG).open("wb") as log:
            child = subprocess.Popen(
                [str(python), "-I", str(_RUN_WORKER), worker, str(writing), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(folder),
                cwd=folder,
                pass_fds=(writing,),
                start_new_session=True,
            )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        yield child, reading
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        _wait_until_gone(child.pid)
        child.wait()
        os.close(reading)


def _wait_until_gone(group: int) -> None:
    """Until no process of a killed group can hold a file any more: who asked for the job may remove its folder then."""
    latest = time.monotonic() + _DYING_SECONDS
    while any(state not in "ZX" for state, _ in _processes(group)) and time.monotonic() < latest:
        time.sleep(0.002)


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of the server's: no credentials, no proxies, no preloaded libraries, no pip."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PIP_NO_INDEX": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "OMP_NUM_THREADS": str(hosts.cores()),
    }


def _memory(group: int) -> int:
    """Resident bytes of all processes of a group."""
    return sum(resident for _, resident in _processes(group))


def _processes(group: int) -> Iterator[tuple[str, int]]:
    """State (a letter of proc(5)) and resident bytes of each process of a group."""
    page = os.sysconf("SC_PAGE_SIZE")
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            # The name in brackets may hold anything; after it come state, parent, group, and as the 22nd the pages.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group:
                yield fields[0], int(fields[21]) * page


def _death(child: subprocess.Popen[bytes]) -> str:
    """How the child ended. It is not collected yet: until its group is killed, its number must stay its own."""
    ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert ended
    if ended.si_code == os.CLD_EXITED:
        return f"its process ended with {ended.si_status}"
    return f"its process died of {signal.Signals(ended.si_status).name}"


def _last_words(folder: Path, why: str) -> list[str]:
    """The framework's own last lines, without those that say the same and the frames of a traceback."""
    with suppress(OSError):
        lines = (folder / _LOG).read_bytes()[-20000:].decode("utf-8", "replace").splitlines()
        kept = [line.strip() for line in lines if line.strip() and not line.startswith((" ", "Traceback"))]
        return [line for line in kept[-_LAST_LINES:] if line not in why and why not in line]
    return []


def _ascii(text: str, folder: Path | None = None) -> str:
    if folder:
        text = text.replace(f"{folder}/", "")
    return re.sub(r"\s+", " ", text).encode("ascii", "replace").decode()[:1500]
