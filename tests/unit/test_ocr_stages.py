"""The stages between PP-OCR's three models, with ONNX Runtime in their place: what rapidocr reads, they read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
from PIL import Image
from scipy import ndimage
from unified_backend.errors import RequestError
from unified_backend.stages.expression import parse
from unified_backend.stages.fragments import compose
from unified_backend.stages.user_code import user_stage
from unified_backend.tensors import Signature, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "detection": "ocr_detection.unified/1/PP-OCRv4_det",
    "direction": "ocr_direction/1/model.onnx",
    "recognition": "ocr_recognition/1/model.onnx",
}
ANSWERS = json.loads((ROOT / "tests/data/ocr/rapidocr.json").read_text(encoding="utf-8"))["answers"]
PAGE = skimage.data.page()
PHOTOGRAPHS = {
    "page": PAGE,
    "upside down": PAGE[::-1, ::-1],
    "standing": np.rot90(PAGE),
    "one line": np.where((np.arange(len(PAGE)) // 30 == 2)[:, None], PAGE, np.uint8(160)),
    "figures": skimage.data.text(),
    "no text": skimage.data.coffee(),
}


class Reader:
    """The whole chain, step by step as a pipeline has it."""

    def __init__(self) -> None:
        names = ("prepare", "boxes", "crops", "turn", "text")
        self.stages = {name: user_stage(ROOT / "ensembles/ocr" / f"{name}.py", 1, 1, None, "ocr") for name in names}
        self.models = {
            name: onnxruntime.InferenceSession((ROOT / "model_repository" / place).read_bytes())
            for name, place in MODELS.items()
            if name != "recognition"
        }
        recogniser = onnx.load(ROOT / "model_repository" / MODELS["recognition"])
        signature = Signature(
            (TensorSpec("x", "FP32", (None, 3, 48, None)),),
            (TensorSpec("softmax_11.tmp_0", "FP32", (None, None, 6625)),),
        )
        composed = compose(recogniser, signature, parse('ctc_greedy(charset="metadata:character")'), "recognition")
        self.recogniser = onnxruntime.InferenceSession(composed.model.SerializeToString())
        self.outputs = [spec.name for spec in composed.signature.outputs]
        self.look_up = composed.labels["text"]

    def read(self, encoded: bytes) -> dict[str, np.ndarray]:
        """text, score and boxes."""
        prepared = self.stage("prepare", encoded=np.array([[encoded]], object))
        found = self.stage("boxes", map=self.model("detection", prepared["x"]), image=prepared["image"])
        cut = self.stage("crops", image=prepared["image"], boxes=found["boxes"])
        turned = self.model("direction", cut["small"])
        upright = self.stage("turn", lines=cut["lines"], widths=cut["widths"], turned=turned)
        read, confidence = self.recognise(upright["upright"])
        return self.stage("text", found=found["boxes"], read=read, confidence=confidence)

    def stage(self, name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """What a stage makes, held to what it declares."""
        rows = self.stages[name].run(feeds)
        for error in rows.failed.values():
            raise error
        return dict(rows.arrays)

    def model(self, name: str, x: np.ndarray) -> np.ndarray:
        """The network's answer; it need not take an empty batch, as a pipeline does not ask it then."""
        session = self.models[name]
        if len(x):
            return session.run(None, {"x": x})[0]
        return np.zeros(
            (0, *session.run(None, {"x": np.zeros((1, *x.shape[1:]), np.float32)})[0].shape[1:]), np.float32
        )

    def recognise(self, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Strings [M, 1] and confidences [M, 1]."""
        if not len(lines):
            return np.zeros((0, 1), object), np.zeros((0, 1), np.float32)
        arrays = dict(zip(self.outputs, self.recogniser.run(self.outputs, {"x": lines}), strict=True))
        return self.look_up(arrays), arrays["confidence"]


@pytest.fixture(scope="module")
def reader() -> Reader:
    """One for all tests."""
    return Reader()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_reads_what_the_package_reads(reader: Reader, name: str) -> None:
    found = reader.read(encoded(PHOTOGRAPHS[name]))
    wanted = ANSWERS[name]
    assert list(found["text"][:, 0]) == [line["text"] for line in wanted]
    # OpenCV's fixed-point arithmetic and Clipper's whole pixels: a pixel of a corner, some hundredths of a score.
    corners = np.array([line["box"] for line in wanted]).reshape(-1, 4, 2)
    np.testing.assert_allclose(found["boxes"], corners, atol=1)
    np.testing.assert_allclose(found["score"][:, 0], [line["score"] for line in wanted], atol=0.1)


def test_an_empty_photograph_has_no_lines(reader: Reader) -> None:
    found = reader.read(encoded(np.full((200, 300, 3), 230, np.uint8)))
    assert {name: array.shape for name, array in found.items()} == {
        "text": (0, 1),
        "score": (0, 1),
        "boxes": (0, 4, 2),
    }


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 4000, 3), (2100, 5, 3)])
def test_photographs_of_odd_sizes_are_answered(reader: Reader, shape: tuple[int, ...]) -> None:
    assert len(reader.read(encoded(np.zeros(shape, np.uint8)))["text"]) == 0


def test_a_large_photograph_is_looked_at_smaller_and_cut_from_as_it_is(reader: Reader) -> None:
    large = np.array(Image.fromarray(PAGE).resize((384 * 6, 191 * 6)))
    prepared = reader.stage("prepare", encoded=np.array([[encoded(large)]], object))
    assert prepared["image"].shape == (1, *large.shape, 3)
    assert max(prepared["x"].shape) <= 2000
    found = reader.read(encoded(large))
    assert "Let us first determine markers of the coins and the" in list(found["text"][:, 0])
    assert found["boxes"].max() > 2000


def test_a_photograph_is_turned_as_its_camera_says(reader: Reader) -> None:
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.ascontiguousarray(PAGE[::-1, ::-1])).save(content, "PNG", exif=exif)
    assert list(reader.read(content.getvalue())["text"][:, 0]) == [line["text"] for line in ANSWERS["page"]]


@pytest.mark.parametrize("cut", [0, 20, 2000])
def test_what_is_no_whole_image_is_the_requests_fault(reader: Reader, cut: int) -> None:
    with pytest.raises(RequestError, match=r"prepare\.py: encoded cannot be used"):
        reader.stage("prepare", encoded=np.array([[encoded(PAGE)[:cut]]], object))


def test_only_the_line_that_is_upside_down_is_turned_and_its_padding_stays_behind(reader: Reader) -> None:
    lines = np.random.default_rng(0).normal(size=(3, 3, 48, 320)).astype(np.float32)
    widths = np.array([320, 100, 40], np.int32)
    for i, width in enumerate(widths):
        lines[i, ..., width:] = 0
    before = lines.copy()
    turned = np.array([[0.95, 0.05], [0.05, 0.95], [0.15, 0.85]], np.float32)
    upright = reader.stage("turn", lines=lines, widths=widths, turned=turned)["upright"]
    np.testing.assert_array_equal(upright[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(upright[1, :, ::-1, :100][..., ::-1], before[1, ..., :100])
    assert not upright[1, ..., 100:].any()
    np.testing.assert_array_equal(lines, before)


def test_lines_that_are_not_sure_are_left_out(reader: Reader) -> None:
    boxes = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    read = np.array([["a"], ["b"], ["ü"]], object)
    found = reader.stage("text", found=boxes, read=read, confidence=np.array([[0.5], [0.49], [0.9]], np.float32))
    assert list(found["text"][:, 0]) == ["a", "ü"]
    np.testing.assert_array_equal(found["boxes"], boxes[[0, 2]])


def test_a_slanting_line_is_found_with_its_angle(reader: Reader) -> None:
    y, x = np.mgrid[:320, :320]
    angle = np.deg2rad(30)
    along, beside = (
        (x - 160) * np.cos(angle) + (y - 160) * np.sin(angle),
        (y - 160) * np.cos(angle) - (x - 160) * np.sin(angle),
    )
    core = ((abs(along) <= 100) & (abs(beside) <= 10)).astype(np.float32)
    found = reader.stage("boxes", map=core[None, None] * 0.9, image=np.zeros((1, 640, 640, 3), np.uint8))
    assert found["scores"] == pytest.approx([0.8], abs=0.1)  # 0.9, and less at the rim
    corners = found["boxes"][0]
    across = corners[1] - corners[0]
    assert np.rad2deg(np.arctan2(across[1], across[0])) == pytest.approx(30, abs=1)
    high, wide = 22, 202  # in pixels of the map, with the one that the mask grows by
    grown = (
        wide * high * 1.6 / (2 * (wide + high))
    )  # area x ratio / perimeter, on each side; the image is twice as large
    assert np.linalg.norm(across) == pytest.approx(2 * (wide + 2 * grown), rel=0.03)
    assert np.linalg.norm(corners[3] - corners[0]) == pytest.approx(2 * (high + 2 * grown), rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_boxes_of_any_map_can_be_cut(reader: Reader, seed: int) -> None:
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.random((96, 160)), (2, 4))
    image = random.integers(0, 255, (1, 61, 103, 3), np.uint8)
    likely = np.clip(1.6 * (noise - noise.min()) / np.ptp(noise), 0, 1).astype(np.float32)
    found = reader.stage("boxes", map=likely[None, None], image=image)
    assert len(found["boxes"])
    assert found["boxes"].min() >= 0
    assert (found["boxes"].max((0, 1)) <= [102, 60]).all()
    assert len(reader.stage("crops", image=image, boxes=found["boxes"])["lines"]) == len(found["boxes"])


def test_lines_are_read_from_top_to_bottom_and_in_a_row_from_left_to_right(reader: Reader) -> None:
    core = np.zeros((320, 320), np.float32)
    for top, left in ((200, 20), (53, 180), (50, 20)):
        core[top : top + 12, left : left + 100] = 1
    found = reader.stage("boxes", map=core[None, None], image=np.zeros((1, 320, 320, 3), np.uint8))
    assert [tuple(box[0] > 150) for box in found["boxes"]] == [(False, False), (True, False), (False, True)]


def encoded(image: np.ndarray) -> bytes:
    """As a PNG file."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(content, "PNG")
    return content.getvalue()
