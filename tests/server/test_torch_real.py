"""Networks with real weights, exported as PyTorch's users do, on the real server: they know what photographs show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import made_models
import numpy as np
import pytest
import real_models
import skimage.data
import torch_real_models
from answers import assert_answers, framework_samples
from engine_files import ir, mnn
from helpers import Triton, start_server
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Triton would take a file `model.onnx` for its own backend's.
EXPORTED: Mapping[str, Mapping[str, str]] = {
    "efficientnet_torchscript": {"1/classifier": "efficientnet.pt"},
    "efficientnet_export": {"1/classifier": "efficientnet.pt2"},
    "efficientnet_onnx": {"1/classifier": "efficientnet.onnx"},
    "efficientnet_external": {"1/classifier": "external/model.onnx", "1/model.onnx.data": "external/model.onnx.data"},
}
# What MNN's and OpenVINO's own converters make of the ONNX file, served as it is.
ENGINES = ("efficientnet_mnn", "efficientnet_openvino")
MODELS = (*EXPORTED, *ENGINES)
# Photograph -> the class of ImageNet it shows: Egyptian cat, espresso, motor scooter, monastery or palace, daisy.
CLASSES = {"chelsea": 282, "coffee": 967, "motorcycle_left": 665, "china": 698, "flower": 985}
DETECTORS = {"pnet": (-1, -1), "rnet": (24, 24), "onet": (48, 48)}


def engine_files() -> dict[str, dict[str, Path]]:
    source = torch_real_models.path("efficientnet.onnx")
    graph = ir(source)
    return {
        "efficientnet_mnn": {"1/classifier": mnn(source)},
        "efficientnet_openvino": {"1/classifier.xml": graph, "1/classifier.bin": graph.with_suffix(".bin")},
    }


def detector_config(height: int, width: int) -> str:
    return f"""backend: "unified"
max_batch_size: 16
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 3, {height}, {width} ] }} ]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("torch_real") / "models"
    folder.mkdir()
    with start_server(folder, made_models.toolchain_environment("torch"), model_control_mode="explicit") as server:
        exported = {
            name: {path: torch_real_models.path(file) for path, file in files.items()}
            for name, files in EXPORTED.items()
        }
        for name, files in {**exported, **engine_files()}.items():
            server.add_model(f"{name}.unified", files)
            server.load(f"{name}.unified")
        for name, size in DETECTORS.items():
            config = detector_config(*size)
            server.add_model(name, {"1/model.pt": torch_real_models.path(f"{name}.pt")}, config)
            server.load(name)
        yield server


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """As the network was trained on: the middle 224 x 224 of the photograph at a height or width of 256."""
    return np.stack([prepared(photograph(name)) for name in CLASSES])


def photograph(name: str) -> Image.Image:
    if name in ("china", "flower"):
        return Image.open(real_models.path("scikit-learn", f"datasets/images/{name}.jpg"))
    return Image.open(Path(skimage.data.__file__).parent / f"{name}.png").convert("RGB")


def prepared(image: Image.Image) -> np.ndarray:
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    return ((pixels - 127) / 128).transpose(2, 0, 1)


def answer(server: Triton, model: str, images: np.ndarray) -> np.ndarray:
    (name,) = [row["name"] for row in server.config(model)["input"]]
    (scores,) = server.infer(model, {name: images}).values()
    return scores


@pytest.mark.parametrize("model", MODELS)
def test_a_classifier_knows_five_photographs(server: Triton, photographs: np.ndarray, model: str):
    assert answer(server, f"{model}.unified", photographs).argmax(-1).tolist() == list(CLASSES.values())


def test_all_formats_of_one_classifier_agree(server: Triton, photographs: np.ndarray):
    first, *others = (answer(server, f"{model}.unified", photographs) for model in MODELS)
    for scores in others:
        np.testing.assert_allclose(scores, first, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_each_row_of_a_batch_is_answered_as_it_is_alone(server: Triton, photographs: np.ndarray, model: str):
    model = f"{model}.unified"
    alone = answer(server, model, photographs)
    for batch in (1, 2, 7, 16):
        images = np.resize(photographs, (batch, *photographs.shape[1:]))
        expected = np.resize(alone, (batch, *alone.shape[1:]))
        np.testing.assert_allclose(answer(server, model, images), expected, atol=1e-4)


@pytest.mark.parametrize("model", DETECTORS)
def test_a_detector_answers_as_pytorch_does(server: Triton, model: str):
    samples = framework_samples(server.repository.parent / "cache", f"{model}/1")
    assert_answers(server, model, samples, 16)


def test_a_detector_of_any_size_finds_the_face_of_a_photograph(server: Triton):
    """The first network of MTCNN answers with a score for each place of a grid."""
    face = Image.fromarray(skimage.data.astronaut()).crop((170, 60, 282, 200))  # the head, and little else
    for size in ((12, 15), (24, 30), (96, 120)):
        pixels = np.asarray(face.resize(size, Image.Resampling.BILINEAR), np.float32)
        image = ((pixels - 127.5) / 128).transpose(2, 0, 1)[None]
        answers = server.infer("pnet", {"x": image})
        boxes, scores = answers["OUTPUT__0"], answers["OUTPUT__1"]
        rows, columns = boxes.shape[2:]
        assert scores.shape == (1, 2, rows, columns)
        assert abs(rows - (size[1] - 10) / 2) <= 1
        assert abs(columns - (size[0] - 10) / 2) <= 1
    # At the size it was trained on, 12 pixels a face, it sees one.
    pixels = np.asarray(face.resize((16, 20), Image.Resampling.BILINEAR), np.float32)
    scores = server.infer("pnet", {"x": ((pixels - 127.5) / 128).transpose(2, 0, 1)[None]})["OUTPUT__1"]
    assert scores[0, 1].max() > 0.6  # the threshold that MTCNN's authors use
