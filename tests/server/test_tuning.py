"""`tune` against real servers: it keeps to its budget, ends with the best so far, and writes what loads."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import COMMAND, Triton, add_model, doubling_onnx
from unified_backend.pbtxt import from_pbtxt
from unified_backend.repository import completed_by_core
from unified_backend.tuning.config_file import write_merged
from unified_backend.tuning.served_point import fields_of
from unified_backend.tuning.space import Point

CONFIG = '# ours\nbackend: "unified"\nmax_batch_size: 16  # what clients send\n'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return add_model(tmp_path / "models", "doubling", {"1/model.onnx": doubling_onnx()}, CONFIG)


@pytest.fixture
def tuning(tmp_path: Path, model: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, with a minute to go."""
    process = subprocess.Popen(
        [COMMAND, "tune", model, "--budget", "60", "--concurrency", "8", "--write"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TRITON_UNIFIED_CACHE": str(tmp_path / "cache")},
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def test_every_setting_that_is_searched_is_written_so_that_it_loads(triton: Triton) -> None:
    with triton.serving("tuned", {"1/m.onnx": doubling_onnx()}, CONFIG) as name:
        folder = triton.repository / name
        base = Point("onnxruntime", "", 1, 2, 16)
        best = Point("openvino", "fp16", 2, 1, 8, 200, 4)
        write_merged(folder / "config.pbtxt", fields_of(best, base, completed_by_core(folder)))
        triton.load(name)
        served = triton.config(name)
        assert served["max_batch_size"] == 8
        assert served["dynamic_batching"]["max_queue_delay_microseconds"] == 200
        assert served["dynamic_batching"]["preferred_batch_size"] == [4]
        assert [group["count"] for group in served["instance_group"]] == [2]
        loads = [line for line in triton.log_text().splitlines() if f"unified: loaded model={name}/1" in line][-2:]
        assert all("engine=openvino computes_in=fp16 max_batch_size=8 threads=1" in line for line in loads), loads
        np.testing.assert_array_equal(triton.infer(name, {"X": np.ones((8, 4), np.float32)})["Y"], 2)


def test_within_its_budget_it_compares_and_writes_only_what_won(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "tuned.json"
    began = time.monotonic()
    done = subprocess.run(
        [
            *(COMMAND, "tune", model, "--budget", "25", "--concurrency", "4", "--engines", "openvino,tensorrt"),
            *("--out", out, "--write"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TRITON_UNIFIED_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    assert "estimate: at most" in done.stderr
    found = json.loads(out.read_text())
    first, *others = found["tried"]
    assert first["as_it_is"]
    assert first["max_batch_size"] == 16
    assert first["throughput"] > 0
    assert all(row["verdict"] for row in others)
    assert found["conclusion"] in done.stdout
    if found["winner"]:
        assert len(found["compared"][0]["throughput"]) == 3
        assert found["ratio"] > 1
    changed = from_pbtxt("\n".join(found["lines"]))
    assert bool(changed) == bool(found["winner"])
    config = from_pbtxt((model / "config.pbtxt").read_text())
    assert {name: config[name] for name in changed} == changed
    assert (model / "config.pbtxt").read_text().startswith("# ours\n")


def test_interrupted_it_says_what_was_best_so_far_and_writes_nothing(
    tuning: subprocess.Popen[str], model: Path
) -> None:
    assert tuning.stderr
    for line in tuning.stderr:
        if "estimate:" in line:
            break
    else:
        pytest.fail("it said nothing of how long it takes")
    tuning.send_signal(signal.SIGINT)
    output, errors = tuning.communicate(timeout=60)
    assert tuning.returncode == 128 + signal.SIGINT, errors
    assert "interrupted" in output
    assert "best so far, not compared side by side" in output
    assert (model / "config.pbtxt").read_text() == CONFIG


def test_what_cannot_be_tuned_is_refused_before_anything_is_served(tmp_path: Path, model: Path) -> None:
    sequences = add_model(
        model.parent, "sequences", {"1/m.onnx": doubling_onnx()}, 'backend: "unified" sequence_batching { }'
    )
    for arguments, why in {
        (model, "--p99", "20"): '"20ms"',
        (model, "--engines", "tensorflow"): "--engines tensorflow is not known",
        (model.parent,): "one model is tuned",
        (sequences,): "sequence_batching",
        (model / "1/model.onnx", "--write"): "no model's directory",
    }.items():
        done = subprocess.run([COMMAND, "tune", *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
