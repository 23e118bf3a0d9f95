"""Real object stores, on loopback, for every test that wants one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unified_backend.server.preflight import free_ports

LOCAL = "127.0.0.1"
WEED = Path(sys.executable).with_name("weed")


class ObjectStore:
    """SeaweedFS: an S3 server of a test's own, with one user.

    Attributes:
        environment: what a client needs to reach it, in the variables that every S3 client reads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port, *self._ports = free_ports(8)
        self.endpoint = f"http://{LOCAL}:{self.port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT": self.endpoint,
        }
        self._config = folder / "s3.json"
        credentials = [{"accessKey": "tester", "secretKey": "not-a-secret"}]
        identity = {"name": "tester", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        self._config.write_text(json.dumps({"identities": [identity]}))

    def start(self) -> None:
        """Start it, with what it held when it was stopped."""
        command = [WEED, f"-logdir={self._folder}", "server", f"-dir={self._folder}", "-s3", "-filer"]
        command += [f"-ip={LOCAL}", f"-ip.bind={LOCAL}", "-master.telemetry=false", "-volume.max=20"]
        names = ("master.port", "volume.port", "filer.port", "master.port.grpc", "volume.port.grpc", "filer.port.grpc")
        command += [f"-{name}={port}" for name, port in zip((*names, "s3.port.grpc"), self._ports, strict=True)]
        command += [f"-s3.port={self.port}", f"-s3.config={self._config}", "-s3.autoCreateBucket"]
        command += ["-master.volumeSizeLimitMB=1024"]
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection((LOCAL, self.port), 1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no S3 server:\n{(self._folder / 'weed.log').read_text()[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it; connections are refused afterwards."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self, frozen: bool) -> None:
        """Make it accept connections and never answer, or answer again."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running S3 server."""
    folder = Path(tempfile.mkdtemp(prefix="weed-"))
    store = ObjectStore(folder)
    try:
        store.start()
        yield store
    finally:
        store.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    """An S3 server for many tests: use buckets of your own, and leave it running."""
    with object_store() as store:
        yield store


@pytest.fixture
def own_s3() -> Iterator[ObjectStore]:
    """An S3 server that the test may stop."""
    with object_store() as store:
        yield store
