"""PyTorch's files: what they say without PyTorch, what hides in them, and what their toolchain makes of them."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch_models
from commands import command, printed
from unified_backend.formats.pickles import imports
from unified_backend.formats.torchscript_code import methods

pytestmark = pytest.mark.slow


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def changed(source: Path, target: Path, change: dict[str, bytes]) -> Path:
    """A copy of an archive with other bytes for the members of these names (inside its folder)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change.pop(name.partition("/")[2], old.read(name)))
        for name, data in change.items():
            new.writestr(f"{source.stem}/{name}", data)
    return target


def convert(home: Path, source: Path, *options: str) -> tuple[int, str]:
    done = command(
        home, "convert", source, "--out", home / "out", *options, env=made_models.toolchain_environment("torch")
    )
    return done.returncode, done.stderr


def report(home: Path) -> dict[str, Any]:
    return json.loads((home / "out" / "report.json").read_text())


def test_a_traced_module_tells_its_inputs_and_a_scripted_one_its_arguments(tmp_path):
    traced = printed(tmp_path, "inspect", torch_models.path("pixels_traced.pt"))
    assert traced["format"] == "torchscript"
    assert traced["inputs"] == [{"name": "image", "dtype": "UINT8", "shape": [-1, 48, 40, 3], "tensor": "image"}]
    scripted = printed(tmp_path, "inspect", torch_models.path("several_scripted.pt"))
    assert [(row["name"], row["shape"]) for row in scripted["inputs"]] == [("x", None), ("y", None)]
    assert scripted["facts"]["methods"]["forward"]["arguments"]["mask"] == "Optional[Tensor] = None"


def test_an_exported_program_tells_its_inputs_and_operators(tmp_path):
    found = printed(tmp_path, "inspect", torch_models.path("transformer.pt2"))
    assert found["format"] == "torch-export"
    assert [(row["name"], row["dtype"], row["shape"]) for row in found["inputs"]] == [("ids", "INT64", [-1, 9])]
    assert found["facts"]["operators"]["aten.embedding.default"] == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("state_dict.pt", "a PyTorch state_dict, weights without a graph: export the model"),
        ("old.pt", "a pickle of PyTorch's before 1.6"),
        ("whole.pt", "a pickled PyTorch module (torch.nn.modules.linear.Linear), whose code is not in it"),
    ],
)
def test_what_is_no_graph_is_answered_with_what_to_export(tmp_path, name, words):
    done = command(tmp_path, "inspect", torch_models.path(name))
    assert done.returncode == 1
    assert words in done.stderr
    assert "torch.export.save(" in done.stderr


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("lstm_traced.pt", "data.pkl"),
        ("lstm_traced.pt", "constants.pkl"),
        ("lstm_traced.pt", "traced_inputs.pkl"),
        ("lstm.pt2", "data/constants/opaque_0"),
        ("lstm.pt2", "data/sample_inputs/model.pt"),
    ],
)
def test_a_pickle_inside_an_archive_runs_nothing(tmp_path, name, member):
    payload = pickle.dumps(Payload(tmp_path / "mark"))
    if member.endswith("model.pt"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as inner:
            inner.writestr("archive/data.pkl", payload)
        payload = buffer.getvalue()
    source = changed(torch_models.path(name), tmp_path / name, {member: payload})
    code, log = convert(tmp_path, source)
    assert code == 1
    assert "holds code that is not the model's" in log
    assert "would import posix.mkdir" in log
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["weights.pt", "model.joblib", "state.pkl"])
def test_a_pickle_by_itself_runs_nothing(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"sklearn": Payload(tmp_path / "mark")}))
    code, log = convert(tmp_path, tmp_path / name)
    assert code == 1
    assert "it is never loaded" in log
    assert not (tmp_path / "mark").exists()


def test_a_pickle_in_the_place_of_a_state_dict_runs_nothing(tmp_path):
    """As torch.save writes weights: a zip whose only pickle is data.pkl."""
    source = changed(
        torch_models.path("state_dict.pt"),
        tmp_path / "weights.pt",
        {"data.pkl": pickle.dumps(Payload(tmp_path / "mark"))},
    )
    code, log = convert(tmp_path, source)
    assert code == 1
    assert "a pickled PyTorch module (posix.mkdir), whose code is not in it; it is never loaded" in log
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "change",
    [
        ("expr_str", "__import__('os').mkdir('mark')"),
        ("target", "torch.os.mkdir"),
        ("guards_code", ["__import__('os').mkdir('mark')"]),
    ],
)
def test_expressions_and_targets_of_a_program_run_nothing(tmp_path, change):
    key, value = change

    def set_first(node: Any) -> bool:
        if isinstance(node, dict):
            if key in node:
                node[key] = value
                return True
            return any(set_first(each) for each in node.values())
        return isinstance(node, list) and any(set_first(each) for each in node)

    source = torch_models.path("lstm.pt2")
    with zipfile.ZipFile(source) as archive:
        program = json.loads(archive.read("lstm/models/model.json"))
    assert set_first(program)
    evil = changed(source, tmp_path / "evil.pt2", {"models/model.json": json.dumps(program).encode()})
    code, log = convert(tmp_path, evil)
    assert code == 1
    assert "holds code that is not the model's" in log
    assert not (tmp_path / "mark").exists()


def test_every_protocol_of_pickles_tells_what_it_imports(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert imports(pickle.dumps(Payload(tmp_path), protocol)) == ["posix mkdir"]


def test_arguments_that_are_no_names_are_refused():
    with pytest.raises(ValueError, match="is no name of an argument"):
        methods("class A(Module):\n  def forward(self: A,\n    x + print(1): Tensor) -> Tensor:\n    return x\n", "A")


@pytest.mark.parametrize(
    "name",
    [
        *(f"{each}_traced.pt" for each in ("classifier", "lstm", "gru", "transformer", "attention", "named", "pixels")),
        *(f"{each}.pt2" for each in ("classifier", "gru", "transformer", "attention", "named", "pixels", "several")),
    ],
)
def test_what_tells_its_shapes_is_converted_as_it_is(tmp_path, name):
    code, log = convert(tmp_path, torch_models.path(name))
    assert code == 0, log
    told = report(tmp_path)
    assert {row["batch"] for row in told["verified"]} == {1, 3}
    assert max(row["max_abs"] for row in told["verified"]) < 1e-4
    assert told["reference"] == "torch 2.13.0"
    if name.startswith("named"):
        assert [row["name"] for row in told["signature"]["outputs"]] == ["logits", "probs"]
    else:
        assert told["signature"]["outputs"][0]["name"] == "OUTPUT__0"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lstm", ("--inputs", "x[-1,-1,6]")),
        ("attention", ("--inputs", "x[-1,-1,16]")),
        ("named", ("--inputs", "x[-1,4]")),
        ("pixels", ("--inputs", "image[-1,-1,-1,3]:UINT8")),
        ("several", ("--inputs", "x[-1,4],y[-1,4]")),
        ("control_flow", ("--inputs", "x[-1,4]", "-p", 'arguments={"times": 2}')),
        ("counter", ("--inputs", "x[-1,4]", "-p", "stateful=allow")),
    ],
)
def test_a_scripted_module_is_converted_once_its_shapes_are_told(tmp_path, name, options):
    code, log = convert(tmp_path, torch_models.path(f"{name}_scripted.pt"), *options)
    assert code == 0, log
    assert max(row["max_abs"] for row in report(tmp_path)["verified"]) < 1e-4


def test_control_flow_stays_control_flow(tmp_path):
    code, log = convert(tmp_path, torch_models.path("control_flow_scripted.pt"), "--inputs", "x[-1,4]")
    assert code == 0, log
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (answer,) = session.run(None, {"x": np.full((1, 4), -5, np.float32)})
    np.testing.assert_array_equal(answer, np.full((1, 4), -8, np.float32))


def test_a_quantised_module_is_converted_with_its_operators(tmp_path):
    """One step of rounding is more than is accepted by itself of a float."""
    code, log = convert(tmp_path, torch_models.path("quantised_traced.pt"))
    assert code == 1, log
    assert not report(tmp_path)["passed"]
    code, log = convert(tmp_path, torch_models.path("quantised_traced.pt"), "-p", "tolerance=0.02")
    assert code == 0, log
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("name", "options", "operator"),
    [
        ("dynamic_traced.pt", (), "quantized::linear_dynamic"),
        ("encoder_scripted.pt", ("--inputs", "src[-1,-1,16]"), "aten::is_autocast_enabled"),
    ],
)
def test_an_operator_that_no_exporter_takes_is_named(tmp_path, name, options, operator):
    code, log = convert(tmp_path, torch_models.path(name), *options)
    assert code == 1
    assert f"operator '{operator}'" in log.splitlines()[-1]


def test_large_weights_lie_in_a_file_beside_the_model(tmp_path):
    code, log = convert(tmp_path, torch_models.path("large_traced.pt"))
    assert code == 0, log
    out = tmp_path / "out"
    assert (out / "model.onnx").stat().st_size < 10_000
    assert (out / "model.onnx.data").stat().st_size >= 2 * 64 * 300_000 * 4
    told = report(tmp_path)
    assert max(row["max_rel"] for row in told["verified"]) < 1e-3
    assert told["peak_rss_mb"] < 1600


def test_dimensions_that_a_trace_fixed_are_opened_on_request(tmp_path):
    code, log = convert(tmp_path, torch_models.path("pixels_traced.pt"), "--inputs", "image[-1,-1,-1,3]")
    assert code == 0, log
    assert report(tmp_path)["signature"]["inputs"][0]["shape"] == [-1, -1, -1, 3]


def test_shapes_that_nobody_told_are_asked_for(tmp_path):
    code, log = convert(tmp_path, torch_models.path("several_scripted.pt"))
    assert code == 1
    assert "the shape of x, y is not known" in log
    assert 'input [ { name: "x" data_type: TYPE_FP32 dims: [' in log


def test_samples_tell_shapes_and_types(tmp_path):
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples" / "one.npz", ids=np.arange(9)[None])
    np.savez(tmp_path / "samples" / "two.npz", x=np.ones((2, 7, 6), np.float32))
    (tmp_path / "samples" / "one.npz").unlink()
    code, log = convert(tmp_path, torch_models.path("lstm_scripted.pt"), "--samples", str(tmp_path / "samples"))
    assert code == 0, log
    assert report(tmp_path)["signature"]["inputs"][0]["shape"] == [-1, 7, 6]


def test_a_module_that_keeps_a_state_is_refused_unless_it_may(tmp_path):
    code, log = convert(tmp_path, torch_models.path("counter_scripted.pt"), "--inputs", "x[-1,4]")
    assert code == 1
    assert "the model answers otherwise each time" in log
    assert '"stateful" is "allow"' in log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-p", "method=encode"), "it has forward"),
        (("-p", 'arguments={"nothing": 1}'), "the method has x, y"),
        (("-p", 'converter={"dynamic_axis": {}}'), "torch.onnx.export takes"),
        (("--opset", "3"), "torch.onnx.export writes 7 to"),
        (("--inputs", "z[-1,4]"), 'parameter "inputs" names z: the model has x, y'),
        (("--inputs", "x[-1,4]:INT8"), 'parameter "inputs" gives x the type INT8: the model takes FP32'),
        (("--signature", "x"), "served with all of a method's outputs"),
    ],
)
def test_wrong_parameters_are_refused_with_what_there_is(tmp_path, options, words):
    code, log = convert(tmp_path, torch_models.path("several_traced.pt"), *options)
    assert code == 2, log
    assert words in log.splitlines()[-1]


def test_a_truncated_archive_is_said_to_be_one(tmp_path):
    content = torch_models.path("lstm_traced.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    done = command(tmp_path, "inspect", tmp_path / "cut.pt")
    assert done.returncode == 1
    assert "cut.pt is a truncated PyTorch archive" in done.stderr


def test_a_type_that_triton_has_not_got_and_a_damaged_sample_are_named(tmp_path):
    code, log = convert(tmp_path, torch_models.path("lstm_scripted.pt"), "--inputs", "x[-1,7,6]:FLOAT")
    assert code == 2, log
    assert 'parameter "inputs" gives x the type FLOAT' in log
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    code, log = convert(tmp_path, torch_models.path("lstm_scripted.pt"), "--samples", str(tmp_path / "samples"))
    assert code == 2, log
    assert "cut.npz cannot be read" in log
