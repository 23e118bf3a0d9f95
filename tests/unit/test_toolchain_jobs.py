"""Jobs in a toolchain that misbehave in every way: a typed error in seconds, and nothing left running."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from test_toolchains import toolchain
from unified_backend.errors import ConversionError
from unified_backend.toolchains import environment, job

WORKER = """
import os, pathlib, signal, socket, subprocess, sys, time

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
    subprocess.Popen(["/bin/sleep", "1000"])
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

def full(job, folder):
    for number in range(1000):
        (folder / str(number)).write_bytes(bytes(1_000_000))
    return {}

def leave_a_child(job, folder):
    child = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
    return {"started": child.pid}

def trespass(job, folder):
    (folder / "mine").write_text("kept")
    (folder / "mine").rename(folder / "still-mine")
    done = {}
    for name, act in {
        "write": lambda path: path.write_text("changed"),
        "append": lambda path: path.open("a").write("changed"),
        "truncate": lambda path: os.truncate(path, 0),
        "remove": lambda path: path.unlink(),
        "rename": lambda path: path.rename(folder / "taken"),
        "make": lambda path: path.with_name("made").write_text("made"),
        "mkdir": lambda path: path.with_name("folder").mkdir(),
        "link": lambda path: path.with_name("link").symlink_to(path),
        "by-a-child": lambda path: subprocess.run(["/bin/sh", "-c", f"echo changed > {path}"], check=True),
    }.items():
        try:
            act(pathlib.Path(job["outside"]))
            done[name] = "done"
        except (OSError, subprocess.CalledProcessError):
            pass
    return {"done": done}

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


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.05)


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
    before = sleepers()
    with pytest.raises(ConversionError, match="not done after 2 s"):
        run(python, tmp_path, "hang", job.Limits(2, LIMITS.memory_bytes, LIMITS.disk_bytes))
    wait_until(lambda: sleepers() <= before, "the child to end")


def test_a_job_over_its_memory_dies_alone(tmp_path, python):
    began = time.monotonic()
    with pytest.raises(ConversionError, match=r"it took [\d.]+ [MG]B of memory, and 500 MB are allowed"):
        run(python, tmp_path, "devour")
    assert time.monotonic() - began < 20


def test_a_framework_that_prints_a_lot_is_heard_out(tmp_path, python):
    assert run(python, tmp_path, "chatter").result == {"done": True}


def sleepers() -> set[str]:
    """Processes that are the worker's `sleep`."""
    return {
        entry.name
        for entry in Path("/proc").glob("[0-9]*")
        if not gone(int(entry.name)) and b"/bin/sleep\x001000" in _command_line(entry)
    }


def _command_line(entry: Path) -> bytes:
    with suppress(OSError):
        return (entry / "cmdline").read_bytes()
    return b""


def test_a_process_that_left_its_group_ends_with_the_job(tmp_path, python):
    before = sleepers()
    run(python, tmp_path, "leave_a_child")
    wait_until(lambda: sleepers() <= before, "the child to end")


def test_a_job_ends_with_the_process_that_asked_for_it(tmp_path, python):
    """A server that is killed leaves nothing that runs."""
    before = sleepers()
    (tmp_path / "job").mkdir()
    ask = (
        "import sys; from pathlib import Path; from unified_backend.toolchains import job\n"
        "limits = job.Limits(60, 10**9, 10**9)\n"
        "job.run(Path(sys.argv[1]), 'tiny', {'do': 'hang'}, Path(sys.argv[2]), limits, 'net/1')"
    )
    asking = subprocess.Popen([sys.executable, "-c", ask, python, tmp_path / "job"])
    try:
        wait_until(lambda: sleepers() - before, "the job to start")
    finally:
        asking.kill()
        asking.wait()
    wait_until(lambda: sleepers() <= before, "the job to end")


def test_a_job_writes_nowhere_but_into_its_folder(tmp_path, python):
    outside = tmp_path / "outside" / "file"
    outside.parent.mkdir()
    outside.write_text("whole")
    assert run(python, tmp_path, "trespass", outside=str(outside)).result == {"done": {}}
    assert outside.read_text() == "whole"
    assert [path.name for path in outside.parent.iterdir()] == ["file"]
    assert (tmp_path / "job/still-mine").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk that is soon full")
def test_a_full_disk_is_told(tmp_path, python):
    disk = tmp_path / "job"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        with pytest.raises(ConversionError, match="No space left on device"):
            job.run(python, "tiny", {"do": "full"}, disk, LIMITS, "net/1")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root may be forbidden to leave the network")
def test_a_job_reaches_nobody_over_the_network(tmp_path, python):
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ConversionError, match=r"OSError|unreachable"):
        run(python, tmp_path, "call", port=server.getsockname()[1])
