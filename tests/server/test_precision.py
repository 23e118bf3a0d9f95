"""A model's precision in a real server: served within its tolerance, told, kept for the next start, and refused."""

from __future__ import annotations

import numpy as np
import tritonclient.http as httpclient
from helpers import UNIFIED, Triton
from models import parsed
from photographs import encoded
from real_models import path as real_path
from skimage import data
from torch_real_models import path as torch_model
from transports import over_grpc
from unified_backend import hosts

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


PICTURES = (
    *("astronaut", "camera", "cat", "chelsea", "clock", "coffee", "coins", "hubble_deep_field", "logo", "moon", "page"),
    *("retina", "rocket", "text"),
)


def photographs() -> dict[str, bytes]:
    """scikit-image's pictures and scikit-learn's, as JPEG, of many sizes."""
    pictures = {name: getattr(data, name)() for name in PICTURES}
    made = {name: encoded(np.stack([one] * 3, -1) if one.ndim == 2 else one[..., :3]) for name, one in pictures.items()}
    for name in ("china", "flower"):
        made[name] = real_path("scikit-learn", f"datasets/images/{name}.jpg").read_bytes()
    return made


def test_a_classifier_calibrated_on_photographs_names_what_it_named_in_fp32(triton: Triton) -> None:
    pictures = photographs()
    network = {"1/net.onnx": torch_model("efficientnet.onnx")}
    stage = 'parameters { key: "preprocess" value { string_value: "efficientnet-lite" } }\n'
    calibration = {f"calibration/{name}.jpg": content for name, content in pictures.items()}
    if "vnni" not in hosts.cpu_features():  # weights have 7 bits there, which this network does not bear
        triton.add_model("photographs_refused", {**network, **calibration}, precision("int8") + stage)
        refused = triton.refusal_of("photographs_refused")  # takes as long as quantising it three times
        assert "the same class for" in refused
        assert "the layers that cost most cosine are" in refused
        return
    classes: dict[str, list[int]] = {}
    for kind in ("fp32", "int8"):
        files = {**network, **(calibration if kind == "int8" else {})}
        with triton.serving(f"photographs_{kind}", files, precision(kind) + stage) as name:
            answers = [
                over_grpc(triton, name, {"image": np.array([[content]], object)})["linear"]
                for content in pictures.values()
            ]
            classes[kind] = [int(scores.argmax()) for scores in answers]
            if kind == "int8":
                assert " computes_in=int8 " in loaded(triton, name)
    assert classes["int8"] == classes["fp32"]
    assert len(set(classes["fp32"])) > 8
    told = [line for line in triton.log_text().splitlines() if "precision=int8 note=" in line]
    assert any("the same class for 100%" in line for line in told)


def test_int8_without_data_is_refused_with_what_to_give(triton: Triton) -> None:
    refused = triton.refusal("uncalibrated", model("{ Y = Mul (X, X) }"), precision("int8"))
    assert "there is no calibration data" in refused
    assert "calibration beside the version folders" in refused
