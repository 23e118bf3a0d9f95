"""`triton-unified bench` with a real Triton and a real perf_analyzer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from helpers import COMMAND, SHM, Triton, wait_until
from models import parsed
from photographs import photographs
from pipelines import write_pipeline

MODEL = parsed(
    "g (float[N,3,16,16] image) => (float[N,3] mean) { pooled = GlobalAveragePool (image)  mean = Flatten (pooled) }"
)
SLOW_STAGE = """
import time
from unified_backend.stages.user import stage

@stage(inputs={"mean": "FP32[-1,3]"}, outputs={"same": "FP32[-1,3]"})
def slow(mean):
    time.sleep(0.02)
    return mean
"""
BRIEF = ("--duration", "0.3", "--rounds", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the cache that these tests share, and what they save."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def model(home: Path) -> Path:
    folder = home / "models" / "mean"
    (folder / "1").mkdir(parents=True)
    onnx.save(MODEL, folder / "1" / "mean.onnx")
    (folder / "config.pbtxt").write_text('backend: "unified"\nmax_batch_size: 4\n')
    return folder


@pytest.fixture(scope="module")
def measured(home: Path, model: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The model with two engines and one that this host has not, and where that was saved."""
    out = home / "mean.json"
    engines = ("--engines", "onnxruntime,openvino,mnn")
    return out, bench(home, model, *engines, "--concurrency", "1,2", "--batch", "1,8", *BRIEF, "--out", out)


def bench(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [COMMAND, "bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=environment(home),
    )


def environment(home: Path) -> Mapping[str, str]:
    return {**os.environ, "TRITON_UNIFIED_CACHE": str(home / "cache")}


def saved(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def test_engines_are_measured_in_turns_and_one_that_is_not_possible_is_skipped(
    measured: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = measured
    assert done.returncode == 0, done.stderr
    result = saved(out)
    places = {(point["variant"], point["batch"], point["concurrency"]) for point in result["points"]}
    assert places == {(engine, 1, count) for engine in ("onnxruntime x1", "openvino x1") for count in (1, 2)}
    for point in result["points"]:
        assert [reading["throughput"] > 0 for reading in point["rounds"]] == [True, True]
        assert point["parts"].keys() >= {"queue", "infer"}
        assert 0 < point["busy"] <= 1
    onnxruntime, openvino = result["variants"]
    assert (onnxruntime["engine"], openvino["engine"]) == ("onnxruntime", "openvino")
    assert openvino["verified"][0]["compared_with"] == "onnxruntime"
    assert openvino["memory_bytes"] > 10e6
    assert onnxruntime["max_batch_size"] == 4
    reasons = {one["what"]: one["why"] for one in result["skipped"]}
    assert reasons["onnxruntime x1 batch 8"] == "the model's max_batch_size is 4"
    assert "it takes mnn, and no onnx" in reasons["mnn x1"]
    assert "skipped: mnn x1: mean/1: no engine takes the model" in done.stdout
    assert "estimate: about" in done.stderr


def test_a_result_is_compared_with_an_earlier_one(
    home: Path, model: Path, measured: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    values = saved(measured[0])
    for point in values["points"]:
        for reading in point["rounds"]:
            reading["throughput"] *= 1000
    values["inputs"] = "photographs"
    (home / "old.json").write_text(json.dumps(values))
    options = ("--engines", "onnxruntime", "--concurrency", "1", *BRIEF)
    done = bench(home, model, *options, "--compare", home / "old.json", "--fail-if-slower")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("differs: inputs: photographs before") for line in lines)
    assert any(line.startswith("compared: 1 points: 1 slower") for line in lines)
    done = bench(home, model, *options, "--compare", home / "old.json", "--json")
    [row] = json.loads(done.stdout)["comparison"]["rows"]
    assert (row["verdict"], row["concurrency"]) == ("slower", 1)
    assert "measured: onnxruntime x1" in done.stderr


def test_a_pipeline_is_measured_as_an_ensemble_and_fused(home: Path) -> None:
    (home / "sums").mkdir()
    definition = write_pipeline(home / "sums")
    done = bench(home, definition, "--concurrency", "2", "--duration", "2", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["subject"] == {"name": "sums", "kind": "pipeline", "models": ["sums"]}
    ensemble, fused = result["points"]
    assert (ensemble["variant"], fused["variant"]) == ("ensemble", "fused")
    assert {step["model"] for step in ensemble["steps"]} >= {"sums_make", "add", "sums_join"}
    spent = {step["model"]: step["parts"] for step in fused["steps"]}
    assert list(spent) == ["make", "add", "join"]
    assert sum(parts["infer"] for parts in spent.values()) == pytest.approx(fused["parts"]["infer"])
    assert not result["skipped"]


def test_stages_have_parts_of_their_own(home: Path) -> None:
    version = home / "models" / "staged" / "1"
    version.mkdir(parents=True)
    onnx.save(MODEL, version / "mean.onnx")
    (version / "postprocess.py").write_text(SLOW_STAGE)
    nobodys = bench(home, version.parent)
    assert nobodys.returncode == 1, nobodys.stderr
    assert "staged/1: config.pbtxt names no backend" in nobodys.stderr
    (version.parent / "config.pbtxt").write_text('backend: "unified"\n')
    done = bench(home, version.parent, "--concurrency", "1", "--duration", "2", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    [point] = json.loads(done.stdout)["points"]
    assert point["parts"]["postprocess"] > 15 > point["parts"]["infer"]
    assert "preprocess" not in point["parts"]


def test_a_running_server_is_measured_with_images(triton: Triton, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "chelsea"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(photographs()[name])
    options = ("--data", tmp_path / "photos", "--concurrency", "1", "--duration", "0.3", "--rounds", "1", "--json")
    with triton.serving("pictures", {"1/m.onnx": MODEL.SerializeToString()}) as name:
        done = bench(tmp_path, name, "--url", f"http://{triton.url}", "--protocol", "http", *options)
        wrong = bench(tmp_path, name, "--url", triton.grpc_url, "--protocol", "http", *options)
    assert wrong.returncode == 1
    assert f"the server at {triton.grpc_url} did not answer" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [point["variant"] for point in result["points"]] == ["as served"]
    assert result["inputs"] == f"2 images of {tmp_path / 'photos'}, decoded and resized to 16 by 16 here"


def test_what_was_measured_before_an_interruption_is_saved_and_shown(home: Path, model: Path) -> None:
    out, log, page = home / "interrupted.json", home / "interrupted.log", home / "interrupted.html"
    endless = ("--duration", "0.3", "--rounds", "500")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, "bench", model, "--engines", "onnxruntime", *endless, "--out", out, "--report", page],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(home),
        )
    wait_until(lambda: log.read_text().count("measured:") >= 2 or process.poll() is not None, 120, "two readings")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert len(saved(out)["points"][0]["rounds"]) >= 1
    assert "onnxruntime x1" in page.read_text()
    assert "interrupted: this is what was measured so far" in log.read_text()
    assert not list(SHM.glob(f"triton_unified_{process.pid}_*"))


def test_nothing_measured_is_a_failure_that_says_why(home: Path, model: Path) -> None:
    done = bench(home, model, "--engines", "mnn", *BRIEF)
    assert done.returncode == 1
    assert "nothing of" in done.stderr
    assert "it takes mnn, and no onnx" in done.stderr
