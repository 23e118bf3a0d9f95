"""Commands that are told to stop while they work: nothing is left, on the disk or running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import made_models
import pytest
import tensorflow_models
from commands import COMMAND, command, tree
from test_toolchain_jobs import wait_until


def environment(home: Path) -> dict[str, str]:
    given = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TRITON_UNIFIED_CACHE": str(home / "cache")}
    return {**given, **made_models.toolchain_environment("tensorflow")}


def hears_interrupts() -> None:
    """As started by a person: what a shell starts in the background, CI perhaps, inherits that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def converting(home: Path, *prefix: str) -> subprocess.Popen[str]:
    """A conversion whose worker is at work."""
    source = tensorflow_models.path("lstm")
    process = subprocess.Popen(
        [*prefix, COMMAND, "convert", source, "--out", home / "out"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home),
        preexec_fn=hears_interrupts,
    )
    assert process.stderr
    while "phase=loading" not in (line := process.stderr.readline()):
        assert line, "it ended before it was stopped"
    return process


def workers(home: Path) -> list[str]:
    """Processes that work in the folders of this cache."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(home / "cache"):
                found.append(entry.name)
        except OSError:
            continue
    return found


def left(home: Path) -> list[Path]:
    return list((home / "cache" / "making").iterdir())


def test_an_installation_that_is_stopped_leaves_nothing(tmp_path):
    """While pip waits for an index that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple"}
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TRITON_UNIFIED_CACHE": str(tmp_path / "cache"), **index}
        with subprocess.Popen([COMMAND, "toolchain", "install"], stderr=subprocess.PIPE, text=True, env=env) as process:
            assert process.stderr
            while 'phase="downloading' not in (line := process.stderr.readline()):
                assert line, "it ended before it was stopped"
            process.terminate()
            assert process.wait(timeout=30) == 143
    assert [path.name for path in (tmp_path / "cache" / "toolchains").iterdir()] == [".locks"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM], 130),
    ],
)
def test_a_conversion_that_is_stopped_leaves_nothing(tmp_path, signals: Sequence[int], code: int):
    with converting(tmp_path) as process:
        assert len(workers(tmp_path)) >= 1
        assert len(left(tmp_path)) == 1
        for number in signals:
            process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in said
    assert left(tmp_path) == []
    wait_until(lambda: not workers(tmp_path), "the worker to end")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_a_killed_conversion_left_goes_with_the_next_collection(tmp_path):
    with converting(tmp_path) as process:
        process.kill()
    wait_until(lambda: not workers(tmp_path), "the worker to end with it")
    assert len(left(tmp_path)) == 1
    assert command(tmp_path, "cache", "gc").returncode == 0
    assert left(tmp_path) == []


@pytest.mark.slow
def test_a_collection_leaves_what_is_being_converted(tmp_path):
    with converting(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)  # or it is done before the collection is
        before = left(tmp_path)
        assert len(before) == 1
        assert command(tmp_path, "cache", "gc").returncode == 0
        assert left(tmp_path) == before
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=120) == 0
    assert "model.onnx" in tree(tmp_path / "out")


@pytest.mark.slow
def test_a_signal_that_is_ignored_from_the_start_stays_ignored(tmp_path):
    with converting(tmp_path, "nohup") as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=120) == 0


@pytest.mark.slow
def test_a_build_that_is_stopped_stops_what_it_started(tmp_path):
    model = tmp_path / "models" / "lstm.unified" / "1" / "model.savedmodel"
    model.parent.mkdir(parents=True)
    model.symlink_to(tensorflow_models.path("lstm"))
    env = {**environment(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with subprocess.Popen([COMMAND, "build", tmp_path / "models"], stderr=subprocess.DEVNULL, env=env) as process:
        wait_until(lambda: workers(tmp_path), "the conversion to start")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert left(tmp_path) == []
    wait_until(lambda: not workers(tmp_path), "the worker to end")
