"""`triton-unified convert` as a person runs it, with the real toolchain."""

from __future__ import annotations

import json
from pathlib import Path

import made_models
import numpy as np
import onnxruntime
import pytest
import real_models
import tensorflow_models
from commands import RELU, command
from onnx import parser

pytestmark = pytest.mark.slow


def convert(home: Path, source: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error; the result is in `home/out`."""
    done = command(
        home, "convert", source, "--out", home / "out", *options, env=made_models.toolchain_environment("tensorflow")
    )
    return done.returncode, done.stdout, done.stderr


def report(home: Path) -> dict:
    return json.loads((home / "out" / "report.json").read_text())


def test_a_real_model_becomes_onnx_with_a_report_and_the_second_time_from_the_cache(tmp_path):
    source = real_models.path("basic-pitch", "saved_models/icassp_2022/nmp")
    code, output, log = convert(tmp_path, source)
    assert code == 0, log
    assert "phase=converting" in log
    assert "PASSED: " in output.splitlines()[-1]
    told = report(tmp_path)
    assert (told["format"], told["opset"], told["reference"]) == ("savedmodel", 18, "tensorflow 2.21.0")
    assert told["versions"]["tf2onnx"] == "1.17.0"
    assert {"files", "signature", "seconds", "peak_rss_mb", "nodes", "operators"} <= set(told)
    assert {row["output"] for row in told["verified"]} == {"note", "onset", "contour"}
    assert {row["batch"] for row in told["verified"]} == {1, 3}
    assert all(row["passed"] and row["max_rel"] < row["tolerance"] for row in told["verified"])

    audio = np.random.default_rng(5).random((2, 43844, 1), np.float32)
    ours = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").run(["note"], {"input_2": audio})[0]
    theirs = onnxruntime.InferenceSession(real_models.path("basic-pitch", "saved_models/icassp_2022/nmp.onnx"))
    (name,) = [given.name for given in theirs.get_inputs()]
    np.testing.assert_allclose(ours, theirs.run(["StatefulPartitionedCall:1"], {name: audio})[0], atol=1e-4)

    code, output, log = convert(tmp_path, source, "--json")
    assert (code, json.loads(output)) == (0, told)
    assert "phase=" not in log


def test_a_model_with_external_data_is_whole_where_it_is_written(tmp_path):
    code, _, log = convert(tmp_path, tensorflow_models.path("fer"), "-p", 'converter={"large_model": true}')
    assert code == 0, log
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.onnx.data", "report.json"}
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (given,) = session.get_inputs()
    assert session.run(None, {given.name: np.zeros((1, *given.shape[1:]), np.float32)})[0].shape == (1, 7)


def test_what_differs_leaves_a_report_and_no_model_unless_that_is_asked_for(tmp_path):
    """The model is random by design: two runs never agree."""
    source = tensorflow_models.path("noisy")
    code, output, log = convert(tmp_path, source)
    assert code == 1, log
    assert "FAILED" in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    told = report(tmp_path)
    assert not told["passed"]
    assert "differs from tensorflow" in told["failure"]
    assert [row for row in told["verified"] if not row["passed"]]
    code, output, _ = convert(tmp_path, source, "-p", "verify=warn")
    assert (code, (tmp_path / "out" / "model.onnx").is_file()) == (0, True)
    assert "written all the same" in output


@pytest.mark.parametrize(
    ("name", "options", "code", "words"),
    [
        ("unconvertible", (), 1, "Digamma (1), Lgamma (1): tf2onnx writes no ONNX operator"),
        ("two_signatures", (), 1, "scale, shift"),
        ("two_signatures", ("--signature", "encode"), 2, "scale, shift"),
        ("classifier.h5", ("-p", 'converter={"large_modle": true}'), 2, "large_model"),
        ("classifier.h5", ("-p", "engine=openvino"), 2, "has no effect here"),
        ("classifier.h5", ("--signature", "x"), 2, "a Keras model is served with all of its outputs"),
        ("frozen.pb", ("--signature", "x"), 2, "a GraphDef has neither signatures nor tags"),
        ("float.tflite", ("--tag", "x"), 2, "has no tags"),
        ("classifier.h5", ("--samples", "."), 2, "samples"),
        ("classifier.h5", ("-p", "opset"), 2, "NAME=VALUE"),
        ("classifier.h5", ("-p", "tolerance=none"), 2, "above 0"),
        ("lambda.h5", (), 1, "allow_unsafe"),
        ("only.weights.h5", (), 1, "weights"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_no_model(tmp_path, name, options, code, words):
    """A wrong option leaves nothing at all; a model that cannot be converted a report that says so."""
    found, output, log = convert(tmp_path, tensorflow_models.path(name), *options)
    assert (found, output) == (code, "")
    assert words in log.splitlines()[-1]
    assert "Traceback" not in log
    if code == 2:
        assert not (tmp_path / "out").exists()
    else:
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
        assert not report(tmp_path)["passed"]
        assert words in report(tmp_path)["failure"]


def test_a_failure_leaves_no_model_of_an_earlier_conversion(tmp_path):
    assert convert(tmp_path, tensorflow_models.path("two_heads.keras"))[0] == 0
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert convert(tmp_path, tensorflow_models.path("unconvertible"))[0] == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, "mine.npz cannot be read"),
        ({"other": np.zeros((1, 6), np.float32)}, "no array named"),
        ({"x": np.zeros((1, 7, 2), np.float32)}, "does not fit the model"),
        ({"x": np.zeros((1, 2), complex)}, "does not fit the model"),
        ({"x": np.array([[object()]])}, "Python objects"),
    ],
)
def test_a_wrong_sample_is_named_with_the_reason(tmp_path, arrays, words):
    (tmp_path / "samples").mkdir()
    if arrays is None:
        (tmp_path / "samples" / "mine.npz").write_bytes(b"PK\x03\x04 cut")
    else:
        np.savez(tmp_path / "samples" / "mine.npz", **arrays)
    source = tensorflow_models.path("two_signatures")
    code, _, log = convert(tmp_path, source, "--signature", "shift", "--samples", str(tmp_path / "samples"))
    assert code == 2, log
    assert words in log.splitlines()[-1]


def test_a_signature_and_an_opset_are_chosen(tmp_path):
    code, _, log = convert(tmp_path, tensorflow_models.path("two_signatures"), "--signature", "shift", "--opset", "15")
    assert code == 0, log
    told = report(tmp_path)
    assert told["signature"]["name"] == "shift"
    assert [row["name"] for row in told["signature"]["outputs"]] == ["shifted"]
    assert told["opset"] == 15


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    code, _, log = convert(tmp_path, tensorflow_models.path("lstm"))
    assert code == 2
    assert "holds other files" in log
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_onnx_is_written_as_engines_take_it(tmp_path):
    (tmp_path / "relu").write_bytes(parser.parse_model(RELU).SerializeToString())
    code, output, log = convert(tmp_path, tmp_path / "relu")
    assert code == 0, log
    assert "nothing to compare" in output
    assert report(tmp_path)["operators"] == {"Relu": 1}
    assert onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").get_inputs()[0].name == "x"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "relu").write_bytes(parser.parse_model(RELU).SerializeToString())
    done = command(tmp_path, "convert", tmp_path / "relu", "--out", "/proc/converted")
    assert done.returncode == 2
    assert "/proc/converted cannot be written" in done.stderr
