"""ncnn serves its own files: the numbers of the same weights in ONNX Runtime, and no answer for another shape."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import ncnn_models
import numpy as np
import onnxruntime
import pytest
from commands import command, printed
from unified_backend.cache import Cache
from unified_backend.errors import EngineError, RequestError, SourceError
from unified_backend.formats import FORMATS
from unified_backend.formats.appearance import appearance
from unified_backend.loading import Loaded, describe, load
from unified_backend.settings import Settings


def loaded(home: Path, model: Path, config: dict[str, Any] | None = None, **parameters: str) -> Loaded:
    """A model in a version folder of its own, loaded as the server would."""
    folder = home / "models" / "net" / "1"
    folder.mkdir(parents=True)
    for file in (model, model.with_suffix(".bin")):
        shutil.copy(file, folder)
    given = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    with Cache(home / "cache") as cache:
        return load(describe("net/1", folder, {**given, **(config or {})}, cache, bool(config)), cache)


def stated(dims: list[int], batch: int = 8) -> dict[str, Any]:
    return {"max_batch_size": batch, "input": [{"name": "in0", "data_type": "TYPE_FP32", "dims": dims}]}


def test_an_image_network_answers_as_onnx_runtime_at_every_batch(tmp_path):
    model, right = ncnn_models.image_net(tmp_path / "made")
    served = loaded(tmp_path, model)
    assert served.engine == "ncnn"
    assert served.described.config["max_batch_size"] == 32
    assert served.described.config["output"][0]["dims"] == [5]
    reference = onnxruntime.InferenceSession(right)
    for count in (1, 4):
        x = np.random.default_rng(count).random((count, 3, 15, 13), np.float32)
        into = np.empty((count, 5), np.float32)
        (answer,) = served.runner.run({"in0": x}, ["out0"], {"out0": into})
        assert answer is into
        np.testing.assert_allclose(answer, reference.run(None, {"in0": x})[0], atol=1e-5)


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_sequence_network_answers_as_onnx_runtime(tmp_path, both_ways):
    model, right = ncnn_models.sequence_net(tmp_path / "made", both_ways)
    runner = loaded(tmp_path, model).runner
    x = np.random.default_rng(1).random((3, 7, 4), np.float32)
    (answer,) = runner.run({"in0": x}, ["out0"])
    np.testing.assert_allclose(answer, onnxruntime.InferenceSession(right).run(None, {"in0": x})[0], atol=1e-5)


def test_a_shape_that_the_file_leaves_open_is_asked_for_and_taken_from_the_config(tmp_path):
    model, right = ncnn_models.image_net(tmp_path / "made", stated=False)
    with pytest.raises(SourceError, match=r'the shape of in0 is not known: .* name: "in0"'):
        loaded(tmp_path / "none", model)
    served = loaded(tmp_path / "config", model, stated([3, 15, 13]))
    x = np.random.default_rng(2).random((2, 3, 15, 13), np.float32)
    (answer,) = served.runner.run({"in0": x}, ["out0"])
    np.testing.assert_allclose(answer, onnxruntime.InferenceSession(right).run(None, {"in0": x})[0], atol=1e-5)
    assert loaded(tmp_path / "parameter", model, inputs="in0[-1,3,15,13]").engine == "ncnn"
    alone = loaded(tmp_path / "alone", model, stated([3, 15, 13], 0)).runner
    np.testing.assert_allclose(alone.run({"in0": x[0]}, ["out0"])[0], answer[0], atol=1e-6)


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ([4, 15, 13], r"conv \(Convolution\) gets \[4, 15, 13\], and its weights are for 3 channels"),
        ([3, 32, 32], r"fc \(InnerProduct\) gets \[8, 16, 16\], and its weights are for 448 values"),
        ([3, -1, 13], "ncnn compares no shapes"),
    ],
)
def test_a_shape_that_the_weights_are_not_for_does_not_load(tmp_path, dims, words):
    """ncnn would answer: it reads beyond the weights."""
    model, _ = ncnn_models.image_net(tmp_path / "made", stated=False)
    with pytest.raises(EngineError, match=words):
        loaded(tmp_path, model, stated(dims))


def test_a_sequence_of_another_width_does_not_load(tmp_path):
    model, _ = ncnn_models.sequence_net(tmp_path / "made")
    model.write_text(model.read_text().replace("0=4 1=7", "0=9 1=7"))
    with pytest.raises(EngineError, match=r"gets \[7, 9\], and its weights are for 4 values a step"):
        loaded(tmp_path, model)


def test_a_request_of_another_shape_is_refused(tmp_path):
    runner = loaded(tmp_path, ncnn_models.image_net(tmp_path / "made")[0]).runner
    for shape in ((1, 3, 15, 14), (3, 15, 13), (0, 3, 15, 13)):
        with pytest.raises(RequestError, match="has shape"):
            runner.run({"in0": np.zeros(shape, np.float32)}, ["out0"])


def test_it_is_described_without_ncnn(tmp_path):
    model, _ = ncnn_models.image_net(tmp_path / "made")
    shown = printed(tmp_path, "inspect", model.parent)
    assert shown["format"] == "ncnn"
    assert set(shown["files"]) == {"net.param", "net.bin"}
    assert shown["inputs"] == [{"name": "in0", "dtype": "FP32", "shape": [-1, 3, 15, 13], "tensor": "in0"}]
    assert [row["name"] for row in shown["outputs"]] == ["out0"]
    assert shown["facts"]["operators"]["InnerProduct"] == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Softmax prob", "MultiHeadAttention prob", "MultiHeadAttention it is not known"),
        ("5 5\n", "6 6\n", "it states 6 layers and has 5"),
        ("1 1 b c", "1 1 z c", "the layer fc takes z, which none before it gives"),
        ("Softmax prob 1 1 c out0", "Softmax prob 1 7 c out0", "lacks blobs"),
        ("2=3\n", "2=three\n", "three"),
    ],
)
def test_a_graph_that_cannot_be_served_is_refused_with_the_reason(tmp_path, old, new, words):
    model, _ = ncnn_models.image_net(tmp_path / "made")
    assert old in model.read_text()
    model.write_text(model.read_text().replace(old, new))
    with pytest.raises(SourceError) as refused:
        loaded(tmp_path, model)
    assert words in str(refused.value)


def test_weights_cut_short_or_missing_are_refused(tmp_path):
    model, _ = ncnn_models.image_net(tmp_path / "made")
    weights = model.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(EngineError, match=r"weight_data failed.*Copy both files again"):
        loaded(tmp_path, model)
    weights.unlink()
    done = command(tmp_path, "inspect", model)
    assert '"net.bin" is not in the folder beside it' in done.stderr.replace("\n", " ")


def test_damage_never_ends_in_a_traceback(tmp_path):
    model, _ = ncnn_models.image_net(tmp_path / "made")
    whole, chance = model.read_bytes(), random.Random(3)
    form = FORMATS["ncnn"]
    for _ in range(300):
        damaged = bytearray(whole[: chance.randrange(1, len(whole))] if chance.random() < 0.5 else whole)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        model.write_bytes(damaged)
        try:
            if form.detect(model):
                form.companions(model)
                form.describe(model, Settings(), "net/1")
        except SourceError as error:
            assert error.do


def test_the_binary_form_is_told_apart(tmp_path):
    (tmp_path / "net.param.bin").write_bytes((7767517).to_bytes(4, "little") + bytes(40))
    assert "put the text here" in appearance(tmp_path / "net.param.bin")
