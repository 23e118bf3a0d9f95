"""The stages between the face detector and the emotion classifier, with LiteRT in the place of a server."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import real_models
import skimage.data
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from unified_backend.errors import RequestError
from unified_backend.stages.user_code import user_stage

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = json.loads((ROOT / "tests/data/faces/packages.json").read_text(encoding="utf-8"))["answers"]
ASTRONAUT = skimage.data.astronaut()
PHOTOGRAPHS = {
    "astronaut": ASTRONAUT,
    "twice": np.hstack([ASTRONAUT, ASTRONAUT]),
    "in a corner": np.pad(ASTRONAUT, ((0, 300), (500, 0), (0, 0))),
    "photographer": np.stack([skimage.data.camera()] * 3, -1),
    "coffee": skimage.data.coffee(),
}


class Finder:
    """The whole chain, step by step as a pipeline has it."""

    def __init__(self) -> None:
        names = ("prepare", "boxes", "crops", "emotion")
        self.stages = {name: user_stage(ROOT / "ensembles/faces" / f"{name}.py", 1, 1, None, "faces") for name in names}
        self.detector = Interpreter(str(ROOT / "ensembles/faces/models/face_detection.tflite"))
        # The same network as the Keras file, which takes TensorFlow to load.
        self.classifier = Interpreter(str(real_models.path("fer", "data/emotion_model_quantized.tflite")))

    def find(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """boxes, scores, label and score."""
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        prepared = self.stage("prepare", encoded=np.array([[content.getvalue()]], object))
        regressors, classificators = sorted(run(self.detector, prepared["x"]), key=lambda array: -array.shape[2])
        found = self.stage("boxes", regressors=regressors, classificators=classificators, image=prepared["image"])
        faces = self.stage("crops", image=prepared["image"], boxes=found["boxes"])["faces"]
        answers = [run(self.classifier, face[None])[0] for face in faces]
        probabilities = np.concatenate([*answers, np.zeros((0, 7), np.float32)])
        return found | self.stage("emotion", probabilities=probabilities)

    def stage(self, name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """What a stage makes, held to what it declares."""
        rows = self.stages[name].run(feeds)
        for error in rows.failed.values():
            raise error
        return dict(rows.arrays)


@pytest.fixture(scope="module")
def finder() -> Finder:
    """One for all tests."""
    return Finder()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_finds_what_the_packages_find(finder: Finder, name: str) -> None:
    found = finder.find(PHOTOGRAPHS[name])
    wanted = ANSWERS[name]
    assert len(found["boxes"]) == len(wanted)
    order = np.argsort(found["boxes"][:, 0])
    for face, index in zip(wanted, order, strict=True):
        # The package resizes the photograph with its border: up to half a pixel of the detector.
        np.testing.assert_allclose(found["boxes"][index], face["box"], atol=2)
        assert found["scores"][index, 0] == pytest.approx(face["score"], abs=0.02)
        assert found["label"][index, 0] == face["label"]


def test_the_astronaut_is_one_happy_face(finder: Finder) -> None:
    found = finder.find(ASTRONAUT)
    assert list(found["label"][:, 0]) == ["happy"]
    assert found["score"][0, 0] > 0.9
    left, top, right, bottom = found["boxes"][0]
    assert left < 225 < right  # her nose
    assert top < 130 < bottom


def test_two_faces_side_by_side_are_two(finder: Finder) -> None:
    found = finder.find(PHOTOGRAPHS["twice"])
    assert list(found["label"][:, 0]) == ["happy", "happy"]
    left, right = sorted(found["boxes"].tolist())
    np.testing.assert_allclose(np.array(right) - left, [512, 0, 512, 0], atol=5)


def test_a_picture_without_a_face_has_none(finder: Finder) -> None:
    found = finder.find(skimage.data.coffee())
    assert {name: array.shape for name, array in found.items()} == {
        "boxes": (0, 4),
        "scores": (0, 1),
        "label": (0, 1),
        "score": (0, 1),
    }


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 900, 3), (900, 2, 3)])
def test_pictures_of_odd_sizes_are_answered(finder: Finder, shape: tuple[int, ...]) -> None:
    assert len(finder.find(np.zeros(shape, np.uint8))["boxes"]) == 0


def test_a_face_at_the_rim_is_cut_with_the_rim_repeated(finder: Finder) -> None:
    image = np.full((1, 100, 100, 3), 255, np.uint8)
    faces = finder.stage("crops", image=image, boxes=np.array([[-20, -20, 30, 30], [90, 95, 100, 100]], np.float32))
    assert faces["faces"].shape == (2, 64, 64, 1)
    np.testing.assert_allclose(faces["faces"], 1)


def test_boxes_that_overlap_become_one_and_those_that_do_not_stay(finder: Finder) -> None:
    regressors = np.zeros((1, 2304, 16), np.float32)
    classificators = np.full((1, 2304, 1), -100, np.float32)
    regressors[..., 2:4] = 20  # pixels of 192 wide and high
    for cell, logit in ((10 * 48 + 10, 3.0), (10 * 48 + 11, 1.0), (30 * 48 + 40, 2.0)):
        classificators[0, cell] = logit
    image = np.zeros((1, 192, 384, 3), np.uint8)  # seen at half its size, 48 pixels below the top
    found = finder.stage("boxes", regressors=regressors, classificators=classificators, image=image)
    np.testing.assert_allclose(found["scores"][:, 0], 1 / (1 + np.exp([-3.0, -2.0])), rtol=1e-5)
    weights = 1 / (1 + np.exp([-3.0, -1.0]))
    x = np.average([10.5, 11.5], weights=weights) / 48 * 384
    np.testing.assert_allclose(found["boxes"][0], [x - 20, 0, x + 20, 8], atol=1e-3)  # cut at the top
    np.testing.assert_allclose(found["boxes"][1], [304, 128, 344, 168], atol=1e-3)


def test_what_is_no_image_is_the_requests_fault(finder: Finder) -> None:
    with pytest.raises(RequestError, match=r"prepare\.py: encoded cannot be used"):
        finder.stage("prepare", encoded=np.array([[b"GIF89a"]], object))


def run(interpreter: Interpreter, x: np.ndarray) -> list[np.ndarray]:
    """All outputs for one input."""
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]
