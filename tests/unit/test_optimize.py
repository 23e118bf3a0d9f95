"""`triton-unified optimize` as a person runs it, on real models and on ones that a toolchain converts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import made_models
import mxnet_models
import numpy as np
import onnx
import onnxruntime
import paddle_models
import pytest
import real_models
import tensorflow_models
import torch_models
import torch_real_models
import tree_models
from commands import command, printed, unified_model
from engine_files import CLS, DET

REC = next(CLS.parent.glob("*_rec_infer.onnx"))
PAGE = Path(__file__).parents[2] / "docs/tasks/speed.md"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """One cache for all."""
    return tmp_path_factory.mktemp("home")


def check_steps(report: dict, names: list[str]) -> None:
    """What is simplified answers within 1e-5 and stays ONNX; the graph of the engine agrees too."""
    assert [step["name"] for step in report["steps"]] == names
    *portable, engine = report["steps"]
    for step in portable:
        assert step["portable"]
        assert step["outside_onnx"] == []
        assert all(row["max_rel"] <= 1e-5 for row in step["verified"])
    for step in report["steps"][1:]:
        assert {row["batch"] for row in step["verified"]} == {1, 3}
    assert all(row["passed"] for row in engine["verified"])


@pytest.mark.parametrize(
    ("source", "most"),
    [
        (lambda: CLS, 220),
        (lambda: DET, 500),
        (lambda: REC, 575),
        (lambda: real_models.path("basic-pitch", "saved_models/icassp_2022/nmp.onnx"), 185),
    ],
    ids=["direction", "detector", "recogniser", "basic-pitch"],
)
def test_real_models_get_smaller_and_answer_the_same(home, source, most):
    report = printed(home, "optimize", source())
    check_steps(report, ["canonical", "simplified", "onnxruntime all"])
    before, after, engine = report["steps"]
    assert after["nodes"] <= most < before["nodes"]
    assert sum(before["operators"].values()) == before["nodes"]
    told = after["changes"]
    for operator in {*before["operators"], *after["operators"]}:
        gone = sum(told[kind].get(operator, 0) for kind in ("folded", "fused", "removed"))
        there = before["operators"].get(operator, 0) - gone + told["added"].get(operator, 0)
        assert there == after["operators"].get(operator, 0)
    assert not engine["portable"]
    assert any(name.startswith("com.microsoft") for name in engine["outside_onnx"])


def test_what_an_exporter_wrote_well_has_nothing_to_simplify(home):
    report = printed(home, "optimize", torch_real_models.path("efficientnet.onnx"))
    check_steps(report, ["canonical", "onnxruntime all"])
    assert "there is nothing to simplify" in report["notes"]
    assert report["steps"][1]["nodes"] < report["steps"][0]["nodes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toolchain", "source"),
    [
        ("tensorflow", lambda: tensorflow_models.path("classifier.h5")),
        ("torch", lambda: torch_models.path("classifier_traced.pt")),
        ("mxnet", lambda: mxnet_models.path("cnn")),
        ("paddle", lambda: paddle_models.path("cnn")),
        ("trees", lambda: tree_models.path("several.txt")),
    ],
    ids=["tensorflow", "torch", "mxnet", "paddle", "trees"],
)
def test_a_converted_model_is_simplified_by_its_toolchain_alone(home, toolchain, source):
    report = printed(home, "optimize", source(), env=made_models.toolchain_environment(toolchain))
    check_steps(report, ["canonical", "onnxruntime all"])
    assert "the toolchain that wrote it has simplified it" in report["notes"]


def test_what_is_written_is_the_portable_model_with_an_open_batch(home, tmp_path):
    done = command(home, "optimize", CLS, "--out", tmp_path / "out", "--level", "extended")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime extended" in done.stdout
    images = np.random.default_rng(2).random((5, 3, 48, 192), np.float32)
    one, other = (onnxruntime.InferenceSession(path) for path in (CLS, tmp_path / "out" / "model.onnx"))
    (name,) = [given.name for given in one.get_inputs()]
    np.testing.assert_allclose(one.run(None, {name: images}), other.run(None, {name: images}), atol=1e-5)
    assert {node.domain for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node} == {""}


def test_level_none_changes_nothing(home, tmp_path):
    report = printed(home, "optimize", CLS, "--level", "none", "--out", tmp_path / "out")
    assert [step["name"] for step in report["steps"]] == ["canonical"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == CLS.read_bytes()


def test_the_config_of_a_model_directory_counts(tmp_path):
    text = 'backend: "unified" parameters { key: "graph_optimization" value { string_value: "basic" } }'
    model = unified_model(tmp_path / "models", "relu", config=text)
    assert printed(tmp_path, "optimize", model)["level"] == "basic"
    assert printed(tmp_path, "optimize", model, "-p", "graph_optimization=none")["level"] == "none"


@pytest.mark.parametrize(
    ("content", "options", "code", "words"),
    [
        (None, (), 2, "is not there"),
        (b"\x08\x07\x3a\xff\x01" + b"\0" * 9, (), 1, "net"),
        (b"no model", (), 1, "net"),
        (CLS.read_bytes()[:-1000], (), 1, "truncated"),
        (CLS.read_bytes(), ("--level", "best"), 2, "none, basic, extended, all"),
        (CLS.read_bytes(), ("-p", "engine=openvino"), 2, '"engine" has no effect here'),
        (CLS.read_bytes(), ("-p", "level"), 2, "NAME=VALUE"),
        (CLS.read_bytes(), ("--out", "/proc/version"), 2, "cannot take the model"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, content, options, code, words):
    if content is not None:
        (tmp_path / "net.onnx").write_bytes(content)
    done = command(tmp_path, "optimize", tmp_path / "net.onnx", *options)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_documentation_shows_what_it_prints(tmp_path):
    """But for seconds and errors, which are the machine's, and for ONNX Runtime's own graph, which its processor's."""
    section = PAGE.read_text().partition("## Graph optimisation")[2].partition("\n## ")[0]
    first, *shown = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert first == "$ triton-unified optimize models/ocr_direction"
    model = unified_model(tmp_path / "models", "ocr_direction", config='backend: "unified"')
    shutil.copy(CLS, model / "1" / "net")
    done = command(tmp_path, *first.split()[2:-1], model)
    assert done.returncode == 0, done.stderr
    told = [_words(line) for line in done.stdout.splitlines()]
    kept = [line for line in shown if not line.startswith(("step ", "...", "onnxruntime all"))]
    assert len(kept) == 12
    for line in map(_words, kept):
        assert line in told if line[-1] != "PASSED" else line[:3] in [words[:3] for words in told]


def _words(line: str) -> list[str]:
    """The words of a line, whether it is for a person or a pipe, without seconds."""
    return [word for word in line.replace(":", " ").split() if not re.fullmatch(r"\d+\.\d\d", word)]
