"""A model's precision in a real server: served within its tolerance, told, kept for the next start, and refused."""

from __future__ import annotations

import io

import numpy as np
import tritonclient.http as httpclient
from helpers import UNIFIED, Triton
from models import parsed
from PIL import Image

# 4096 leaves FP16 steps of 4: nothing is left of what was added.
LOST = "{ c = Constant<value = float[1] {4096.0}>() a = Add (X, c) Y = Sub (a, c) }"
OVERFLOWS = "{ c = Constant<value = float[1] {100000.0}>() Y = Mul (X, c) }"
KEPT = "{ c = Constant<value = float[1] {100000.0}>() a = Tanh (X) Y = Mul (a, c) }"


def model(nodes: str) -> dict[str, bytes]:
    return {"1/m.onnx": parsed(f"g (float[N, 4] X) => (float[N, 4] Y) {nodes}").SerializeToString()}


def precision(name: str) -> str:
    return f'{UNIFIED}parameters {{ key: "precision" value {{ string_value: "{name}" }} }}\n'


def answer(triton: Triton, name: str, x: np.ndarray) -> np.ndarray:
    tensor = httpclient.InferInput("X", list(x.shape), "FP32").set_data_from_numpy(x)
    return triton.client.infer(name, [tensor]).as_numpy("Y")


def loaded(triton: Triton, name: str) -> str:
    """The last line that tells of a load."""
    return [line for line in triton.log_text().splitlines() if f"loaded model={name}/1 " in line][-1]


def test_fp16_answers_within_its_tolerance_is_told_and_is_found_by_the_next_load(triton: Triton) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    with triton.serving("half", model("{ a = Tanh (X) Y = Add (a, a) }"), precision("fp16")) as name:
        found = answer(triton, name, x)
        assert found.dtype == np.float32
        assert 0 < np.abs(found - 2 * np.tanh(x)).max() < 4e-3
        assert f"lowered model={name}/1 precision=fp16 note=" in triton.log_text()
        assert "precision fp16: 2 nodes, 0 kept in FP32; off by " in triton.log_text()
        assert " computes_in=fp16 " in loaded(triton, name)
        triton.client.unload_model(name)
        triton.load(name)
        np.testing.assert_array_equal(answer(triton, name, x), found)
        log = triton.log_text()
        assert log.count(f"lowered model={name}/1 ") == 1
        assert "precision=hit" in [line for line in log.splitlines() if f"described model={name}/1 " in line][-1]


def test_what_fp16_cannot_hold_is_kept_in_fp32_by_name_or_refused(triton: Triton) -> None:
    with triton.serving("kept", model(KEPT), precision("fp16")) as name:
        found = answer(triton, name, np.ones((1, 4), np.float32))
        np.testing.assert_allclose(found, 1e5 * np.tanh(1), rtol=2e-3)
        assert "1 kept in FP32 (Mul_2: c holds 1e+05, beyond FP16's 65504)" in triton.log_text()
    refused = triton.refusal("overflows", model(OVERFLOWS), precision("fp16"))
    assert "no node can be lowered to fp16: c holds 1e+05, beyond FP16's 65504. Leave the parameter" in refused


def test_a_precision_that_answers_otherwise_is_refused_and_never_served_in_fp32(triton: Triton) -> None:
    refused = triton.refusal("lost", model(LOST), precision("fp16"))
    assert "the model in FP16 differs from FP32: output Y at batch " in refused
    assert "`exclude`, accept more with `tolerance`, or take a higher precision" in refused
    with triton.serving("automatic", model(LOST), precision("auto")) as name:  # on a CPU nothing is lowered
        x = np.full((1, 4), 0.25, np.float32)
        np.testing.assert_array_equal(answer(triton, name, x), x)


COLOURS = (
    "g (float[N, 3, 16, 16] X) => (float[N, 3] Y) { w = Constant<value = float[3, 3, 1, 1] "
    "{1.0, -0.1, -0.2, -0.3, 0.9, -0.1, -0.2, -0.3, 1.1}>() a = Conv (X, w) b = GlobalAveragePool (a) Y = Flatten (b) }"
)


def jpeg(colour: int, level: int) -> bytes:
    """A picture in which one colour outshines the others."""
    pixels = np.random.default_rng(level).integers(0, 90, (20, 24, 3), np.uint8)
    pixels[..., colour] += np.uint8(level)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def test_int8_is_calibrated_on_pictures_through_the_models_own_stage(triton: Triton) -> None:
    seen = {f"calibration/{c}_{level}.jpg": jpeg(c, level) for c in range(3) for level in (80, 110, 140, 160)}
    files = {"1/m.onnx": parsed(COLOURS).SerializeToString()} | seen
    config = precision("int8") + 'parameters { key: "preprocess" value { string_value: "image(16)" } }\n'
    with triton.serving("pictures", files, config) as name:
        (stated,) = triton.client.get_model_metadata(name)["inputs"]
        for colour in range(3):
            tensor = httpclient.InferInput(stated["name"], [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[jpeg(colour, 125)]], object))
            assert triton.client.infer(name, [tensor]).as_numpy("Y").argmax() == colour
        assert "precision int8: 1 nodes, 0 kept in FP32; off by " in triton.log_text()
        assert " computes_in=int8 " in loaded(triton, name)
    seen["calibration/broken.jpg"] = b"\xff\xd8\xff"
    refused = triton.refusal("broken", {"1/m.onnx": files["1/m.onnx"]} | seen, config)
    assert "the calibration data broken.jpg cannot be used" in refused
