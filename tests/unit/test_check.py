"""`triton-unified check`: what a load does, as a user reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from custom_operators import LIBRARY
from unified_backend.pbtxt import read_pbtxt

COMMAND = Path(sys.executable).parent / "triton-unified"
RELU = '<ir_version: 9, opset_import: ["":17]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'


def check(tmp_path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {"TRITON_UNIFIED_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    return subprocess.run([COMMAND, "check", *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "models" / "relu.unified"
    (folder / "1").mkdir(parents=True)
    onnx.save_model(onnx.parser.parse_model(RELU), folder / "1" / "net")
    return folder


def test_a_model_that_loads_is_reported_with_a_config_to_paste(tmp_path, model):
    done = check(tmp_path, model)
    assert done.returncode == 0, done.stderr
    for part in ("format: onnx (net)", "engine: onnxruntime", "canonical made", "\nloads"):
        assert part in done.stdout
    text = done.stdout.split("# config.pbtxt, completed\n")[1].removesuffix("\nloads\n")
    (model / "config.pbtxt").write_text(text)
    again = check(tmp_path, model)
    assert again.returncode == 0
    assert text in again.stdout
    assert "engine hit" in again.stdout


def test_json_holds_the_same(tmp_path, model):
    result = json.loads(check(tmp_path, model, "--json").stdout)
    assert (result["loads"], result["format"], result["engine"]) == (True, "onnx", "onnxruntime")
    assert result["cache"] == dict.fromkeys(("canonical", "batching", "engine", "plan"), "made")
    (tmp_path / "config.pbtxt").write_text(result["config"])
    assert read_pbtxt(tmp_path / "config.pbtxt")["max_batch_size"] == 32


def test_the_ladder_says_of_each_rung_why_it_was_not_taken(tmp_path, model):
    cpu = 'backend: "unified" instance_group { kind: KIND_CPU }'
    (model / "config.pbtxt").write_text(cpu)
    rungs = json.loads(check(tmp_path, model, "--json").stdout)["ladder"]
    assert rungs[-1] == {"engine": "onnxruntime", "taken": True, "reason": "first usable rung"}
    missed = {rung["engine"]: rung["reason"] for rung in rungs[:-1]}
    assert "driver" in missed["onnxruntime_cuda"] or "KIND_CPU" in missed["onnxruntime_cuda"]
    printed = check(tmp_path, model).stdout
    assert f"rung onnxruntime_cuda: not taken: {missed['onnxruntime_cuda']}" in printed
    (model / "config.pbtxt").write_text(f'{cpu} parameters {{ key: "engine" value {{ string_value: "openvino" }} }}')
    (rung,) = json.loads(check(tmp_path, model, "--json").stdout)["ladder"]
    assert rung == {"engine": "openvino", "taken": True, "reason": 'parameter "engine" is "openvino"'}


def test_a_model_that_does_not_load_fails_with_the_servers_words(tmp_path, model):
    (model / "config.pbtxt").write_text('backend: "unified" input { name: "z" }')
    done = check(tmp_path, model)
    assert done.returncode == 1
    assert 'relu.unified/1: input "z" is not in the model' in done.stderr
    failed = check(tmp_path, model, "--json")
    assert failed.returncode == 1
    assert "x" in json.loads(failed.stdout)["error"]["why"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("backend: 3", "does not parse"),
        ('backend: "onnxruntime"', 'has backend "onnxruntime": the model belongs to another backend'),
        ('name: "other"', "folder's name"),
    ],
)
def test_a_config_that_triton_would_refuse_is_named(tmp_path, model, config, words):
    (model / "config.pbtxt").write_text(config)
    done = check(tmp_path, model)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())


def test_a_platform_belongs_to_another_backend_too(tmp_path, model):
    (model / "config.pbtxt").write_text('platform: "onnxruntime_onnx"')
    done = check(tmp_path, model.rename(model.with_name("relu")))
    assert done.returncode == 1
    assert 'has platform "onnxruntime_onnx": the model belongs to another backend' in " ".join(done.stderr.split())


def test_another_model_py_belongs_to_the_python_backend(tmp_path, model):
    (model / "config.pbtxt").write_text('backend: "python"')
    (model / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    assert "the model belongs to another backend" in " ".join(check(tmp_path, model).stderr.split())
    shutil.copy(Path(__file__).resolve().parents[2] / "backend/model.py", model / "1")
    assert check(tmp_path, model).returncode == 0


def test_of_an_ensemble_the_models_of_its_steps_are_looked_for(tmp_path, model):
    steps = 'step { model_name: "relu.unified" model_version: -1 } step { model_name: "other" model_version: -1 }'
    ensemble = model.parent / "both"
    (ensemble / "1").mkdir(parents=True)
    (ensemble / "config.pbtxt").write_text(f'platform: "ensemble" ensemble_scheduling {{ {steps} }}')
    for words in ("there is no such model beside it", "it has no version folder"):
        done = check(tmp_path, ensemble)
        assert done.returncode == 1
        assert f"the ensemble's model other cannot be used: {words}" in " ".join(done.stderr.split())
        (model.parent / "other").mkdir(exist_ok=True)
    (model.parent / "other" / "1").mkdir()
    (model.parent / "other" / "config.pbtxt").write_text('backend: "python"')
    shown = check(tmp_path, ensemble)
    assert shown.returncode == 0
    assert "platform: ensemble" in shown.stdout
    assert "step: relu.unified (backend unified)\nstep: other (backend python)" in shown.stdout
    report = json.loads(check(tmp_path, ensemble, "--json").stdout)
    assert (report["loads"], report["steps"]) == (None, {"relu.unified": "unified", "other": "python"})


def test_a_name_with_two_dots_reaches_another_backend(tmp_path, model):
    done = check(tmp_path, model.rename(model.with_name("relu.v2.unified")))
    assert done.returncode == 1
    assert "no other dot" in done.stderr


def test_a_written_zero_means_no_batching_as_in_the_server(tmp_path, model):
    (model / "config.pbtxt").write_text('backend: "unified" max_batch_size: 0')
    result = json.loads(check(tmp_path, model, "--json").stdout)
    (tmp_path / "config.pbtxt").write_text(result["config"])
    config = read_pbtxt(tmp_path / "config.pbtxt")
    assert config.get("max_batch_size", 0) == 0
    assert config["input"][0]["dims"] == ["-1", "4"]


def test_a_version_is_chosen_or_the_highest(tmp_path, model):
    (model / "2").mkdir()
    (model / "2" / "broken").write_bytes(b"")
    assert check(tmp_path, model).returncode == 1
    assert check(tmp_path, model, "--version", "1").returncode == 0


@pytest.mark.parametrize("arguments", [["nowhere"], ["relu.unified", "--version", "7"], ["empty.unified"]])
def test_nothing_to_load_is_refused(tmp_path, model, arguments):
    (model.parent / "empty.unified").mkdir()
    done = check(tmp_path, model.parent / arguments[0], *arguments[1:])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


UPPER = """<ir_version: 9, opset_import: ["": 17, "ai.onnx.contrib": 1]>
g (string[N,1] x) => (string[N,1] y) { y = ai.onnx.contrib.StringUpper(x) }"""


def with_library(path: str) -> str:
    return f'backend: "unified" parameters {{ key: "custom_op_library" value {{ string_value: "{path}" }} }}'


def test_custom_operators_come_from_the_library_that_is_named(tmp_path, model):
    onnx.save_model(onnx.parser.parse_model(UPPER), model / "1" / "net")
    refused = check(tmp_path, model)
    assert refused.returncode == 1
    assert "StringUpper" in refused.stderr
    assert '"custom_op_library"' in refused.stderr
    (model / "config.pbtxt").write_text(with_library(LIBRARY))
    assert check(tmp_path, model).returncode == 0
    assert "engine hit" in check(tmp_path, model).stdout


@pytest.mark.parametrize("library", ["/nowhere/ops.so", "/etc/hostname"])
def test_a_library_that_cannot_be_used_is_named(tmp_path, model, library):
    (model / "config.pbtxt").write_text(with_library(library))
    done = check(tmp_path, model)
    assert done.returncode == 1
    assert library in done.stderr


def test_a_cache_in_the_repository_is_refused(tmp_path, model):
    (tmp_path / "cache").symlink_to(model.parent / ".cache")
    done = check(tmp_path, model)
    assert done.returncode == 1
    assert "lies in the model repository" in done.stderr
    assert not (model.parent / ".cache").exists()


LARGE = '<ir_version: 9, opset_import: ["":17]> g (float[N,400000] x) => (float[N,400000] y) { y = Neg(x) }'


def test_a_model_with_large_outputs_is_rehearsed_too(tmp_path, model):
    onnx.save_model(onnx.parser.parse_model(LARGE), model / "1" / "net")
    done = check(tmp_path, model)
    assert done.returncode == 0
    assert done.stderr == ""  # where a rehearsal that failed would be told
    assert "execution: " in done.stdout
