"""What Triton's metrics endpoint says of a model after traffic that is known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from helpers import UNIFIED, Triton, add_model, doubles, doubling_onnx, start_server, wait_until
from models import parsed
from tritonclient.utils import InferenceServerException

LOOKUP = parsed(
    "g (int64[N,1] index) => (float[N,2] row) <float[3,2] table = {0, 1, 10, 11, 20, 21}>"
    "{ rows = Gather (table, index)  row = Flatten (rows) }"
).SerializeToString()
SLOW_STAGE = b"""
import time
from unified_backend.stages.user import stage

@stage(inputs={"row": "FP32[-1,2]"}, outputs={"same": "FP32[-1,2]"})
def slow(row):
    time.sleep(0.2)
    return row
"""
# One by one, so that the size of each execution is that of its request.
LOOPED = UNIFIED + 'parameters { key: "batching" value { string_value: "loop" } }\n'


def total(triton: Triton, model: str, *key: str) -> float:
    return triton.metrics(model).get(key, 0)


def ask(triton: Triton, model: str, rows: int, index: int = 2) -> None:
    triton.infer(model, {"index": np.full((rows, 1), index)})


def test_batch_sizes_are_a_cumulative_histogram(triton: Triton) -> None:
    with triton.serving("sizes", {"1/m.onnx": LOOKUP}, LOOPED) as model:
        for rows in (1, 1, 2, 3, 8, 20):
            ask(triton, model, rows)
        wait_until(lambda: total(triton, model, "unified_batch_size_count") == 6, 10, "six executions to be counted")
        metrics = triton.metrics(model)
    assert metrics["unified_batch_size_sum",] == 1 + 1 + 2 + 3 + 8 + 20
    buckets = {key[1]: value for key, value in metrics.items() if key[0] == "unified_batch_size_bucket"}
    assert buckets == {
        "le=1": 2,
        "le=2": 3,
        "le=4": 4,
        "le=8": 5,
        "le=16": 5,
        "le=32": 6,
        "le=64": 6,
        "le=128": 6,
        "le=+Inf": 6,
    }


def test_failed_requests_are_counted_by_code(triton: Triton) -> None:
    with triton.serving("errors", {"1/m.onnx": LOOKUP}, LOOPED) as model:
        for index in (7, 0, -8):
            try:
                ask(triton, model, 1, index)
            except InferenceServerException as error:
                assert index != 0, error
        failed = ("unified_request_errors_total", "code=INVALID_ARG")
        wait_until(lambda: total(triton, model, *failed) == 2, 10, "two failed requests to be counted")
        wait_until(lambda: total(triton, model, "unified_batch_size_count") == 1, 10, "the good one to be counted")


def test_the_time_of_stages_is_counted_apart_from_the_engines(triton: Triton) -> None:
    with triton.serving("staged", {"1/m.onnx": LOOKUP, "1/postprocess.py": SLOW_STAGE}) as model:
        ask(triton, model, 1)
        spent = ("unified_stage_duration_us", "stage=postprocess")
        wait_until(lambda: total(triton, model, *spent) > 0, 10, "the stage to be counted")
        metrics = triton.metrics(model)
    assert metrics[spent] >= 200_000
    assert metrics["unified_stage_duration_us", "stage=engine"] < 200_000
    assert ("unified_stage_duration_us", "stage=preprocess") not in metrics


def test_load_tells_phases_engine_and_what_the_cache_held(triton: Triton) -> None:
    own = parsed("g (float[N,3] X) => (float[N,3] Y) { a = Exp (X) Y = Neg (a) }").SerializeToString()
    two = UNIFIED + "instance_group { count: 2 kind: KIND_CPU }\n"
    with triton.serving("phases", {"1/m.onnx": own}, two) as model:
        metrics = triton.metrics(model)
    assert metrics["unified_engine_info", "engine=onnxruntime"] == 2  # instances
    phases = {key[1]: value for key, value in metrics.items() if key[0] == "unified_load_seconds"}
    assert phases.keys() == {f"phase={name}" for name in ("detect", "describe", "prove", "build", "load", "warm_up")}
    assert all(0 <= seconds < 60 for seconds in phases.values())
    # Config completion, before any instance, has made all but the engine; of two instances one makes that.
    assert {key[1:]: value for key, value in metrics.items() if key[0] == "unified_cache_lookups_total"} == {
        ("kind=canonical", "result=hit"): 2,
        ("kind=batching", "result=hit"): 2,
        ("kind=engine", "result=made"): 1,
        ("kind=engine", "result=hit"): 1,
        ("kind=plan", "result=made"): 1,
        ("kind=plan", "result=hit"): 1,
    }


def test_metrics_of_a_new_load_outlive_the_old_one_and_end_with_the_model(triton: Triton) -> None:
    """Triton frees a metric with the first stub that gives it up, though others count on in it (server#8663)."""
    with triton.serving("reloaded", {"1/m.onnx": LOOKUP}, LOOPED) as model:
        ask(triton, model, 1)
        triton.load(model, {"backend": "unified", "max_batch_size": 4})
        wait_until(lambda: f"unloaded '{model}'" in triton.log_text(), 30, "the first load to go")
        assert total(triton, model, "unified_engine_info", "engine=onnxruntime") == 1
        assert total(triton, model, "unified_load_seconds", "phase=detect") > 0
        ask(triton, model, 4)
        wait_until(lambda: total(triton, model, "unified_batch_size_sum") == 4, 10, "the new load to count")
        triton.unload(model)
        wait_until(lambda: not [key for key in triton.metrics(model) if key[0].startswith("unified")], 10, "the end")


def test_server_without_metrics_serves(tmp_path: Path) -> None:
    add_model(tmp_path / "models", "doubling", {"1/m.onnx": doubling_onnx()}, UNIFIED)
    with start_server(tmp_path / "models", arguments=("--allow-metrics=false",)) as server:
        assert doubles(server.url, shape=(1, 4))
        time.sleep(1.5)  # what was counted is handed over once a second
        assert doubles(server.url, shape=(1, 4))
        assert "Traceback" not in server.log_text()
