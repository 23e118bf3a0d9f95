"""What `bench` says to do: only what every round bears out."""

from __future__ import annotations

import pytest
from measured import point, result, variant
from unified_backend.measuring.advice import advice, ratio
from unified_backend.measuring.result import Check, Step


def test_an_engine_that_is_faster_in_every_round_is_advised_with_its_parameter() -> None:
    points = [point("onnxruntime x1", [100, 102, 98]), point("openvino x1", [141, 140, 139])]
    assert advice(result(points)) == [
        "openvino gives 1.41 times the throughput of onnxruntime at batch 1 concurrency 1: engine: openvino"
    ]


@pytest.mark.parametrize("throughputs", [[150, 90, 140], [101, 104, 99]], ids=["one round lost", "too little"])
def test_what_noise_may_have_made_is_not_said(throughputs: list[float]) -> None:
    points = [point("onnxruntime x1", [100, 102, 98]), point("openvino x1", throughputs)]
    assert advice(result(points)) == []


def test_a_single_round_has_to_differ_by_more() -> None:
    base = point("onnxruntime x1", [100])
    assert ratio(point("openvino x1", [115]), base) is None
    assert ratio(point("openvino x1", [130]), base) == pytest.approx(1.3)


def test_engines_that_win_at_different_loads_are_told_apart() -> None:
    points = [
        *(point("onnxruntime x1", [200, 201], 1, 1), point("openvino x1", [100, 101], 1, 1)),
        *(point("onnxruntime x1", [200, 201], 16, 1), point("openvino x1", [400, 401], 16, 1)),
    ]
    told = [text for text in advice(result(points)) if "engine:" in text]
    assert told == [
        "onnxruntime gives 2.00 times the throughput of openvino at batch 1 concurrency 1: engine: onnxruntime",
        "openvino gives 2.00 times the throughput of onnxruntime at batch 16 concurrency 1: engine: openvino",
    ]


def test_instances_are_held_against_threads() -> None:
    variants = [variant("auto x1", threads=2), variant("auto x2", instances=2, threads=1)]
    points = [point("auto x1", [100, 101], 1, 4), point("auto x2", [120, 119], 1, 4)]
    assert advice(result(points, variants)) == [
        "2 instances with 1 thread each give 1.19 times 1 instance with 2 threads each at batch 1 concurrency 4"
    ]


def test_a_precision_is_told_with_what_it_costs() -> None:
    verified = [
        Check("y", 0.1, 0.02, 0.05, True, top1=0.98, compared_with="the model in FP32"),
        Check("y", 1e-7, 1e-6, 1e-3, True, top1=1.0),
    ]
    variants = [
        variant("onnxruntime fp32 x1", precision="fp32"),
        variant("onnxruntime int8 x1", precision="int8", verified=verified),
    ]
    points = [point("onnxruntime fp32 x1", [100, 101]), point("onnxruntime int8 x1", [190, 191])]
    assert advice(result(points, variants)) == [
        "int8 on onnxruntime gives 1.90 times the throughput of fp32 at batch 1 concurrency 1; its answers differ by "
        "up to 2.0e-02 of the largest value, and 98% of its samples keep their likeliest class"
    ]


def test_batches_that_gain_and_batches_that_lose() -> None:
    gains = [point("auto x1", [100, 101], 1), point("auto x1", [150, 152], 4), point("auto x1", [210, 212], 16)]
    assert advice(result(gains)) == ["batches of 16 give 2.1 times the inferences of 1 (auto x1, concurrency 1)"]
    loses = [point("auto x1", [100, 101], 1), point("auto x1", [80, 79], 16)]
    assert advice(result(loses)) == ["batches of 16 give 0.79 times the inferences of 1 (auto x1, concurrency 1)"]


def test_a_model_that_more_requests_only_wait_for_is_saturated() -> None:
    points = [point("auto x1", [100, 99], 1, 1, p50=10), point("auto x1", [101, 100], 1, 4, p50=40)]
    [told] = advice(result(points))
    assert told.startswith("auto x1 is saturated by 1 request of batch 1: with 4 in flight throughput does not rise")


def test_idle_engines_queues_and_transport_are_told_of_the_busiest_load() -> None:
    idle = point("auto x1", [100, 99], 1, 16, busy=0.6)
    assert "the engine idles 40% of the time (auto x1, batch 1, concurrency 16)" in advice(result([idle]))[0]
    queue = point("auto x1", [100, 99], 1, 16, parts={"queue": 7.0, "infer": 3.0}, busy=0.99)
    assert "the queue is 70% of the latency" in advice(result([queue]))[0]
    far = {"network": 6.0, "queue": 0.1, "infer": 4.0}
    way = point("auto x1", [100, 99], 1, 1, parts=far, busy=0.99)
    assert "59% of the latency is the way to the server and back" in advice(result([way]))[0]
    assert advice(result([way], options={"protocol": "shm"})) == []


def test_the_wait_inside_a_backend_that_overlaps_batches_is_not_taken_for_the_way_or_for_idleness() -> None:
    waits = {"network": 6.0, "queue": 0.1, "infer": 4.0}
    lone = point("auto x1", [100, 99], 1, 1, parts={"network": 0.1, "infer": 9.9}, busy=0.9)
    assert advice(result([lone, point("auto x1", [200, 199], 1, 4, parts=waits, busy=0.5)])) == []


def test_a_pipeline_names_its_slowest_step_and_its_better_form() -> None:
    steps = [Step("detect", {"queue": 1.0, "infer": 7.0}), Step("read", {"queue": 0.0, "infer": 2.0})]
    points = [point("ensemble", [10, 10.1], steps=steps), point("fused", [14, 14.1])]
    assert advice(result(points)) == [
        "fused gives 1.40 times the ensemble's throughput at batch 1 concurrency 1",
        "detect takes 80% of the time of the steps (ensemble, batch 1, concurrency 1): begin there",
    ]
