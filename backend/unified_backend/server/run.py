"""One running Triton server: started with this backend, asked whether it is ready, stopped without leaving anything."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from unified_backend.errors import ServerError
from unified_backend.server.compose import Composed, composed_backends
from unified_backend.server.find import Server
from unified_backend.server.options import Options, command_line, given
from unified_backend.server.preflight import check_port, check_python, check_repository, resolved_repository

__all__ = ["LoadedModel", "RunningServer", "start"]

_SHM = Path("/dev/shm")
# A launcher that is killed takes its server along, gracefully: PR_SET_PDEATHSIG of linux/prctl.h. Set in a process of
# its own, because gRPC's threads, which a client may have started, run on in a fork of this one: of fifty starts one
# aborted. What Python ignores is as it was again.
_THEN_SERVE = """
import ctypes, os, signal, sys
for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class LoadedModel:
    """One line of Triton's repository index.

    Attributes:
        state: `READY`, `UNAVAILABLE`, `LOADING`, `UNLOADING`, or empty for a model nobody asked to load.
        reason: why it is not ready; empty if it is.
    """

    name: str
    version: str
    state: str
    reason: str

    @property
    def why(self) -> str:
        """The reason on one line, without a stub's traceback; all of it is in the server's log."""
        return " ".join(self.reason.partition("\n\nAt:")[0].split())


def start(server: Server, repositories: Sequence[str | Path], options: Options | None = None) -> RunningServer:
    """Start `server` on `repositories`; returns at once, before any model is loaded.

    Call it from a thread that outlives the server: Linux ends the server with the thread that started it.

    Args:
        repositories: local directories or s3://, gs://, as:// URLs.

    Raises:
        Refused: this could only hang, answer wrongly or fail without a clear word; nothing was started.
    """
    options = options or Options()
    resolved = [resolved_repository(str(repository)) for repository in repositories]
    for repository in resolved:
        check_repository(repository, may_be_empty=options.model_control_mode != "none")
    check_python(server)
    for service in options.services:
        if given(options.arguments, f"--reuse-{service}-port") in ("true", "1"):
            continue
        check_port(options.address(service), options.port(service), f"--{service}-port")
    return RunningServer(server, resolved, options)


class RunningServer(contextlib.AbstractContextManager["RunningServer"]):
    """A server process with all that belongs to it: its stubs, its private directory, its shared memory.

    Made by `start`. Leaving the context stops it.
    """

    def __init__(self, server: Server, repositories: Sequence[str], options: Options) -> None:
        self.server = server
        self.repositories = tuple(repositories)
        self.options = options
        self.returncode: int | None = None
        self._shm_prefix = f"triton_unified_{os.getpid()}_{secrets.token_hex(4)}_"
        self._composing = composed_backends(server)
        composed = self._composing.__enter__()
        try:
            self.process = self._started(repositories, composed)
        except BaseException:
            self._composing.__exit__(None, None, None)
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def ready(self, timeout: float | None = None) -> bool:
        """Wait until the server answers requests.

        Nothing listens before every model has loaded or failed, so this takes as long as the slowest build.

        Args:
            timeout: seconds; None waits for as long as the server lives.

        Returns:
            False if the server ended, or did not get ready in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.running() and (deadline is None or time.monotonic() < deadline):
            if self._health_ok():
                return True
            time.sleep(0.1)
        return False

    def models(self) -> list[LoadedModel]:
        """Every model of the repositories and how it fares, one entry a version."""
        request = urllib.request.Request(f"http://{self.options.url('http')}/v2/repository/index", method="POST")
        try:
            with _DIRECT.open(request, timeout=10) as response:
                index = json.load(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(
                f"cannot list the models of {self.options.url('http')}", str(error), "Look into the server's log"
            ) from error
        return [
            LoadedModel(entry["name"], entry.get("version", ""), entry.get("state", ""), entry.get("reason", ""))
            for entry in index
        ]

    def running(self) -> bool:
        """Whether the server process still runs."""
        return self.returncode is None and not _ended(self.pid, block=False)

    def signal(self, number: int) -> None:
        """Hand a signal to the server alone; it sees to its stubs itself."""
        if self.running():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the server and its stubs at once."""
        if self.running():
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the server's end and clear away what it left.

        Returns:
            Its exit code, as `subprocess` gives it: negative for a signal.

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
        """
        if self.returncode is None:
            if timeout is None:
                _ended(self.pid, block=True)
            elif not self._ended_within(timeout):
                raise TimeoutError(f"tritonserver {self.pid} still runs after {timeout} s")
            self.returncode = self._cleared()
        return self.returncode

    def stop(self, grace: float = 35.0) -> int:
        """Ask the server to end, and end it after `grace` seconds (Triton gives its models 30); its exit code."""
        if self.returncode is None:
            # Not SIGINT: a server started by a background job inherits it ignored, and hears it only once it is ready.
            self.signal(signal.SIGTERM)
            if not self._ended_within(grace):
                self.kill()
        return self.wait()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _started(self, repositories: Sequence[str], composed: Composed) -> subprocess.Popen[bytes]:
        command = command_line(self.server, repositories, self.options, composed.backends, self._shm_prefix)
        environment = self.server.environment({**os.environ, **self.options.environment})
        output: IO[bytes] | None = self.options.log.open("wb") if self.options.log else None
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _THEN_SERVE, str(os.getpid()), *command],
                env=environment,
                cwd=composed.working,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                process_group=0,
            )
        finally:
            if output:
                output.close()

    def _health_ok(self) -> bool:
        try:
            with _DIRECT.open(f"http://{self.options.url('http')}/v2/health/ready", timeout=2) as response:
                return bool(response.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not _ended(self.pid, block=False):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _cleared(self) -> int:
        # The dead server is not reaped yet, so its id, which is its group's too, still is nobody else's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self.process.wait()
        for region in _SHM.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)
        self._composing.__exit__(None, None, None)
        return code


# Without the environment's proxy: a server on this machine is asked directly.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _ended(pid: int, block: bool) -> bool:
    """Whether the child has ended; it is left unreaped, so that its id stays taken."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | (0 if block else os.WNOHANG)) is not None
    except ChildProcessError:
        return True
