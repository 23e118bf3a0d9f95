"""`autotune`: the engine that answers quickest here serves, unless it answers wrongly, and is measured once."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
from loading_worker import INPUT, answer, config, write_model
from unified_backend import autotune
from unified_backend.cache import Cache
from unified_backend.engines.onnxruntime import OnnxRuntimeRunner
from unified_backend.engines.openvino import OpenVinoRunner
from unified_backend.errors import NotCachedError
from unified_backend.loading import Loaded, describe, load


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "repository/net/1")


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        yield cache


def loaded(folder, cache, **parameters: str) -> Loaded:
    given = config(autotune="true", **parameters)
    return load(describe("net/1", folder, given, cache), cache)


def reasons(model: Loaded) -> dict[str, str]:
    return {rung.engine: rung.reason for rung in model.ladder}


@pytest.fixture
def slowed(monkeypatch):
    """Make the runs of a kind of runner take 50 ms longer."""

    def slow(kind: type) -> None:
        run = kind.run
        monkeypatch.setattr(kind, "run", lambda *arguments: (time.sleep(0.05), run(*arguments))[1])

    return slow


@pytest.mark.parametrize(
    ("slow", "fastest", "other"),
    [(OnnxRuntimeRunner, "openvino", "onnxruntime"), (OpenVinoRunner, "onnxruntime", "openvino")],
)
def test_the_engine_that_is_quickest_serves_and_is_not_timed_again(
    folder, cache, slowed, monkeypatch, caplog, slow, fastest, other
):
    slowed(slow)
    with caplog.at_level(logging.INFO):
        model = loaded(folder, cache)
    assert model.engine == fastest
    np.testing.assert_allclose(model.runner.run({"X": INPUT}, ["Y"])[0], answer(), rtol=1e-4, atol=1e-4)
    assert " ms at batch 1, " in reasons(model)[other]
    assert " ms at batch 32, " in reasons(model)[other]
    assert "driver" in reasons(model)["onnxruntime_cuda"] or "CPU" in reasons(model)["onnxruntime_cuda"]
    table = [line for line in caplog.messages if line.startswith("autotuned model=net/1 engine=")]
    assert [line.split()[2] for line in table] == ["engine=onnxruntime", "engine=openvino"]
    monkeypatch.setattr(autotune, "_times", None)
    again = loaded(folder, cache)
    assert (again.engine, reasons(again)) == (model.engine, reasons(model))
    assert again.described.report.lookups["tuning"] == "hit"


def test_another_number_of_threads_is_measured_anew(folder, cache):
    origins = [
        loaded(folder, cache, intra_op_thread_count=threads).described.report.lookups["tuning"] for threads in "121"
    ]
    assert origins == ["made", "made", "hit"]


def test_a_quick_engine_that_answers_wrongly_is_not_kept(folder, cache, slowed, monkeypatch):
    slowed(OnnxRuntimeRunner)
    run = OpenVinoRunner.run
    monkeypatch.setattr(OpenVinoRunner, "run", lambda *arguments: [array + 100 for array in run(*arguments)])
    model = loaded(folder, cache)
    assert model.engine == "onnxruntime"
    assert "output Y at batch" in reasons(model)["openvino"]
    accepted = loaded(folder, cache, verify="warn")  # what may serve by itself is not preferred all the same
    assert accepted.engine == "onnxruntime"
    assert "its outputs are off by" in reasons(accepted)["openvino"]


def test_nothing_is_measured_where_nothing_may_be_built(folder, cache):
    load(describe("net/1", folder, {}, cache), cache)
    with pytest.raises(NotCachedError, match="tuning"):
        loaded(folder, cache, build="never")


def test_a_named_engine_is_not_timed(folder, cache):
    model = loaded(folder, cache, engine="openvino")
    assert model.engine == "openvino"
    assert "tuning" not in model.described.report.lookups


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_openvino_is_told_what_to_tune_itself_for(folder, cache, hint):
    model = loaded(folder, cache, engine="openvino", openvino_hint=hint)
    compiled = model.runner._request.get_compiled_model()
    assert compiled.get_property("PERFORMANCE_HINT").lower() == hint
    np.testing.assert_allclose(model.runner.run({"X": INPUT}, ["Y"])[0], answer(), rtol=1e-4, atol=1e-4)
