"""Jobs in a toolchain that misbehave in every way: a typed error in seconds, and nothing left running."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from test_toolchains import toolchain
from unified_backend.errors import ConversionError
from unified_backend.toolchains import environment, job

WORKER = """
import os, signal, socket, subprocess, sys, time

def work(job, folder, tell):
    tell("loading")
    return globals()[job["do"]](job, folder)

def answer(job, folder):
    (folder / "model.onnx").write_bytes(b"model")
    return {"seen": job["value"], "environment": sorted(os.environ)}

def fail(job, folder):
    print("the framework says: no such operator FancyOp", file=sys.stderr)
    raise ValueError("cannot convert FancyOp")

def crash(job, folder):
    os.kill(os.getpid(), signal.SIGSEGV)

def leave(job, folder):
    os._exit(0)

def hang(job, folder):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["/bin/sleep", "1000"])
    (folder.parent / "child").write_text(str(child.pid))
    time.sleep(1000)

def devour(job, folder):
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20) * 8))

def garbage(job, folder):
    os.write(int(sys.argv[2]), b"\\xff\\x00 not json\\n")
    time.sleep(1000)

def chatter(job, folder):
    for _ in range(2000):
        print("x" * 1000)
    return {"done": True}

def fill(job, folder):
    (folder / "big").write_bytes(bytes(50_000_000))
    return {}

def call(job, folder):
    socket.create_connection(("127.0.0.1", job["port"]), timeout=2)
    return {"connected": True}
"""
LIMITS = job.Limits(seconds=30, memory_bytes=500_000_000, disk_bytes=20_000_000)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a toolchain that holds the worker `tiny`."""
    root = tmp_path_factory.mktemp("cache")
    return environment.install(toolchain(root / "wheels", WORKER), root, root / "wheels")


def run(python: Path, folder: Path, do: str, limits: job.Limits = LIMITS, **values: object) -> job.Done:
    folder = folder / "job"
    folder.mkdir()
    return job.run(python, "tiny", {"do": do, **values}, folder, limits, "net/1")


def gone(pid: int) -> bool:
    """Whether a process has ended, or is a zombie that its parent has yet to collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_a_job_hands_back_its_result_and_what_it_took(tmp_path, python):
    done = run(python, tmp_path, "answer", value=[1, "two"])
    assert done.result["seen"] == [1, "two"]
    assert (tmp_path / "job/model.onnx").read_bytes() == b"model"
    assert 0 < done.peak_rss_bytes < 500_000_000


def test_nothing_of_the_server_s_environment_reaches_the_worker(tmp_path, python, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "LD_PRELOAD_NOT", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    seen = run(python, tmp_path, "answer", value=0).result["environment"]
    assert not {"AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "LD_PRELOAD_NOT", "PYTHONPATH"} & set(seen)


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("fail", r"ValueError: cannot convert FancyOp; the framework says: no such operator"),
        ("crash", "died of SIGSEGV"),
        ("leave", "ended with 0"),
        ("garbage", "is no event"),
        ("fill", "OSError|File too large|SIGXFSZ"),
    ],
)
def test_what_goes_wrong_is_told_in_seconds(tmp_path, python, do, words):
    began = time.monotonic()
    with pytest.raises(ConversionError, match=words) as raised:
        run(python, tmp_path, do)
    assert time.monotonic() - began < 20
    assert "net/1: " in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


def test_a_job_that_hangs_is_stopped_with_all_it_started(tmp_path, python):
    with pytest.raises(ConversionError, match="not done after 2 s"):
        run(python, tmp_path, "hang", job.Limits(2, LIMITS.memory_bytes, LIMITS.disk_bytes))
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while not gone(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(child)


def test_a_job_over_its_memory_dies_alone(tmp_path, python):
    began = time.monotonic()
    with pytest.raises(ConversionError, match=r"of memory, and 0\.5 GB are allowed"):
        run(python, tmp_path, "devour")
    assert time.monotonic() - began < 20


def test_a_framework_that_prints_a_lot_is_heard_out(tmp_path, python):
    assert run(python, tmp_path, "chatter").result == {"done": True}


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root may be forbidden to leave the network")
def test_a_job_reaches_nobody_over_the_network(tmp_path, python):
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ConversionError, match=r"OSError|unreachable"):
        run(python, tmp_path, "call", port=server.getsockname()[1])
