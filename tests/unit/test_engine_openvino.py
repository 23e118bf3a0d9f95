"""OpenVINO serves TensorFlow's files as they are, under the names of their signatures."""

from __future__ import annotations

import numpy as np
import pytest
import real_models
from loading_worker import INPUT, answer, write_model
from unified_backend.cache import Cache
from unified_backend.engines.openvino import OpenVinoRunner
from unified_backend.errors import EngineError, RequestError
from unified_backend.loading import Loaded, describe, load

SAVED_MODEL = "saved_models/icassp_2022/nmp"
ONNX = "saved_models/icassp_2022/nmp.onnx"
OUTPUTS = {
    "note": "StatefulPartitionedCall:1",
    "onset": "StatefulPartitionedCall:2",
    "contour": "StatefulPartitionedCall:0",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with Cache(tmp_path_factory.mktemp("cache")) as cache:
        yield cache


def loaded(folder, cache, **parameters: str) -> Loaded:
    """A version folder, loaded as the server would."""
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    return load(describe("net/1", folder, config, cache), cache)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """A version folder with basic-pitch's SavedModel."""
    folder = tmp_path_factory.mktemp("repository") / "net/1"
    folder.mkdir(parents=True)
    (folder / "model.savedmodel").symlink_to(real_models.path("basic-pitch", SAVED_MODEL))
    return folder


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    """Three windows of sound, [3, 43844, 1]."""
    return np.random.default_rng(7).random((3, 43844, 1), np.float32)


def test_a_saved_model_answers_as_its_authors_onnx_export_does(saved_model, cache, audio, tmp_path):
    served = loaded(saved_model, cache)
    assert served.engine == "openvino"
    other = tmp_path / "net/1"
    other.mkdir(parents=True)
    (other / "model.onnx").symlink_to(real_models.path("basic-pitch", ONNX))
    reference = loaded(other, cache).runner
    expected = reference.run({reference.signature.inputs[0].name: audio}, list(OUTPUTS.values()))
    answers = served.runner.run({"input_2": audio}, list(OUTPUTS))
    for name, one, wanted in zip(OUTPUTS, answers, expected, strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-4, err_msg=name)


def test_it_is_described_by_its_signature_and_proven_batchable(saved_model, cache):
    described = describe("net/1", saved_model, {}, cache)
    assert described.config["max_batch_size"] == 32
    assert {row["name"]: row["dims"] for row in described.config["output"]} == {
        "note": [172, 88],
        "onset": [172, 88],
        "contour": [172, 264],
    }


def test_a_second_load_takes_everything_from_the_cache(saved_model, cache):
    loaded(saved_model, cache)
    assert set(loaded(saved_model, cache).described.report.lookups.values()) == {"hit"}


def test_a_request_of_another_shape_is_refused_by_the_input_s_name(saved_model, cache):
    runner = loaded(saved_model, cache).runner
    with pytest.raises(RequestError, match='input "input_2" has shape'):
        runner.run({"input_2": np.zeros((1, 5, 1), np.float32)}, ["note"])


def test_names_are_served_as_the_parameter_says(saved_model, cache, audio):
    runner = loaded(saved_model, cache, names='{"input_2": "audio", "note": "notes"}').runner
    assert runner.run({"audio": audio}, ["notes"])[0].shape == (3, 172, 88)


def test_openvino_serves_onnx_once_it_agrees_with_onnx_runtime(tmp_path, cache):
    folder = write_model(tmp_path / "net/1", seed=3)
    served = loaded(folder, cache, engine="openvino")
    assert served.engine == "openvino"
    np.testing.assert_allclose(served.runner.run({"X": INPUT}, ["Y"])[0], answer(seed=3), rtol=1e-5, atol=1e-5)


def test_an_engine_that_computes_something_else_does_not_serve(tmp_path, cache, monkeypatch):
    folder = write_model(tmp_path / "net/1", seed=4)
    honest = OpenVinoRunner.run
    monkeypatch.setattr(OpenVinoRunner, "run", lambda *given: [1.01 * array for array in honest(*given)])
    with pytest.raises(EngineError, match="openvino: output Y at batch 1 is off by"):
        loaded(folder, cache, engine="openvino")
    assert loaded(folder, cache, engine="openvino", tolerance="0.02").engine == "openvino"
    assert loaded(folder, cache).engine == "onnxruntime"
