"""Files of MNN and OpenVINO on the real server, with no config: the numbers of the ONNX that they were made from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import engine_files
import ncnn_models
import numpy as np
import pytest
import tritonclient.http as httpclient
from helpers import UNIFIED, Triton, infer, mapped_files
from models import OCR, session

OUTPUT = {"cls": "save_infer_model/scale_0.tmp_1", "rec": "softmax_11.tmp_0"}


def files(form: str, source: Path) -> dict[str, Path]:
    """What is put into a model's directory; Triton's core claims `model.xml` for itself."""
    if form == "mnn":
        return {"1/net": engine_files.mnn(source)}
    made = engine_files.ir(source)
    return {"1/net.xml": made, "1/net.bin": made.with_suffix(".bin")}


def images(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(width).random((count, 3, 48, width), np.float32)


@pytest.mark.parametrize("form", ["mnn", "openvino"])
@pytest.mark.parametrize("part", ["cls", "rec"])
def test_a_network_answers_as_onnx_runtime_at_every_batch_and_width(triton: Triton, form: str, part: str):
    reference = session(OCR[part])
    with triton.serving("net.unified", files(form, OCR[part]), None) as model:
        config = triton.config(model)
        assert config["max_batch_size"] == 32
        assert config["backend"] == "unified"
        for count, width in ((1, 192), (4, 96), (2, 320)):
            x = images(count, width)
            answer = triton.infer(model, {"x": x})[OUTPUT[part]]
            np.testing.assert_allclose(answer, reference.run(None, {"x": x})[0], atol=1e-4)
    assert f"engine={form}" in triton.log_text()
    assert f"taken as it is model={model}/1 format={form} engine={form} reference=itself-alone" in triton.log_text()


@pytest.mark.parametrize("form", ["mnn", "openvino"])
def test_requests_at_once_get_their_own_answers(triton: Triton, form: str):
    x = images(8, 192)
    expected = session(OCR["cls"]).run(None, {"x": x})[0]
    with triton.serving("net.unified", files(form, OCR["cls"]), None) as model:

        def answer(row: int) -> np.ndarray:
            with httpclient.InferenceServerClient(triton.url) as client:
                return infer(client, model, {"x": x[row : row + 1]})[OUTPUT["cls"]]

        with ThreadPoolExecutor(len(x)) as pool:
            for row, found in enumerate(pool.map(answer, range(len(x)))):
                np.testing.assert_allclose(found[0], expected[row], atol=1e-4)


def test_an_ir_under_triton_s_own_name_needs_one_line(triton: Triton):
    made = engine_files.ir(engine_files.CLS)
    there = {"1/model.xml": made, "1/model.bin": made.with_suffix(".bin")}
    with triton.serving("net", there, UNIFIED) as model:
        assert triton.infer(model, {"x": images(1, 192)})[OUTPUT["cls"]].shape == (1, 2)


def test_mnn_is_in_the_stubs_that_serve_it_and_openvino_is_not(triton: Triton):
    with triton.serving("net.unified", files("mnn", OCR["cls"]), None):
        mapped = mapped_files(triton.running.pid)
    assert any("_mnncengine" in path for path in mapped)
    assert not any("openvino" in path for path in mapped)


def test_a_request_of_another_shape_is_refused_and_others_are_answered(triton: Triton):
    with triton.serving("net.unified", files("mnn", OCR["cls"]), None) as model:
        with pytest.raises(Exception, match="x"):
            triton.infer(model, {"x": np.zeros((1, 4, 48, 192), np.float32)})
        assert triton.infer(model, {"x": images(1, 192)})[OUTPUT["cls"]].shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "words"), [("1/net.xml", "net.bin is cut short"), ("1/net.mnn", "damaged")], ids=["openvino", "mnn"]
)
def test_a_file_cut_short_is_refused_and_the_server_lives(triton: Triton, name: str, words: str):
    if name.endswith("xml"):
        made = engine_files.ir(engine_files.CLS)
        cut = {name: made, "1/net.bin": made.with_suffix(".bin").read_bytes()[:1000]}
    else:
        cut = {name: engine_files.mnn(engine_files.CLS).read_bytes()[:200_000]}
    assert words in triton.refusal("net.unified", cut, None)
    assert triton.client.is_server_live()


def test_the_engine_is_named_and_an_impossible_one_is_refused(triton: Triton):
    line = 'parameters {{ key: "engine" value {{ string_value: "{}" }} }}\n'
    made = files("mnn", OCR["cls"])
    with triton.serving("net", made, UNIFIED + line.format("mnn")) as model:
        assert triton.infer(model, {"x": images(1, 192)})[OUTPUT["cls"]].shape == (1, 2)
    assert "and mnn takes it as it is" in triton.refusal("net", made, UNIFIED + line.format("openvino"))


def test_an_ncnn_model_answers_as_its_weights_do_in_onnx_runtime(triton: Triton, tmp_path: Path):
    model_file, right = ncnn_models.image_net(tmp_path)
    there = {"1/net.param": model_file, "1/net.bin": model_file.with_suffix(".bin")}
    with triton.serving("net.unified", there, None) as model:
        assert triton.config(model)["max_batch_size"] == 32
        x = np.random.default_rng(3).random((5, 3, 15, 13), np.float32)
        answer = triton.infer(model, {"in0": x})["out0"]
        np.testing.assert_allclose(answer, session(right).run(None, {"in0": x})[0], atol=1e-5)
    unknown, _ = ncnn_models.image_net(tmp_path / "unknown", stated=False)
    there = {"1/net.param": unknown, "1/net.bin": unknown.with_suffix(".bin")}
    assert 'input [ { name: "in0"' in triton.refusal("net.unified", there, None)
