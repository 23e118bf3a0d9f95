"""Triton's own load generator finds a served model as it expects one, over each transport."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Triton
from models import parsed

PERF_ANALYZER = Path(sys.executable).parent / "perf_analyzer"  # put there by `make setup`
MODEL = parsed(
    "g (float[N,3,H,W] image, int64[N,1] index) => (float[N,3] mean, int64[N,1] next) <int64 one = {1}>"
    "{ pooled = GlobalAveragePool (image)  mean = Flatten (pooled)  next = Add (index, one) }"
).SerializeToString()


@pytest.fixture(scope="module")
def model(triton: Triton) -> Iterator[str]:
    with triton.serving("analyzed", {"1/m.onnx": MODEL}) as name:
        yield name


@pytest.mark.parametrize("shared_memory", ["none", "system"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_perf_analyzer_measures_a_model(triton: Triton, model: str, protocol: str, shared_memory: str) -> None:
    before = inferences(triton, model)
    url = {"grpc": triton.grpc_url, "http": triton.url}[protocol]
    run = subprocess.run(
        [
            *(PERF_ANALYZER, "-m", model, "-i", protocol, "-u", url, f"--shared-memory={shared_memory}"),
            *("-b", "2", "--shape=image:3,8,8", "--output-shared-memory-size=4096"),
            *("--concurrency-range=4", "--request-count=200"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Throughput: " in run.stdout
    after = inferences(triton, model)
    assert after["success"] - before["success"] >= 200
    assert after["fail"] == before["fail"]


def inferences(triton: Triton, model: str) -> dict[str, int]:
    """Requests that a model answered, and that it failed."""
    [statistics] = triton.client.get_inference_statistics(model)["model_stats"]
    return {kind: statistics["inference_stats"][kind]["count"] for kind in ("success", "fail")}
