"""`triton-unified init`: a model's directory, whose config loads as it is and with its comments taken away."""

from __future__ import annotations

import re
from pathlib import Path

import ncnn_models
import numpy as np
import onnx
import pytest
import real_models
from commands import RELU, command, printed, read_only, tree, unified_model
from onnx import TensorProto, helper, numpy_helper
from unified_backend.errors import Refused
from unified_backend.forms.reference import ENGINES
from unified_backend.new_model import place_of
from unified_backend.parameter_help import parameter_help
from unified_backend.pbtxt import read_pbtxt
from unified_backend.repository import parameters
from unified_backend.settings import Settings, parameter_parsers, read_settings

WITHOUT = {"TRITON_UNIFIED_TOOLCHAINS": "off"}
PITCH = ("basic-pitch", "saved_models/icassp_2022/nmp")


@pytest.fixture
def net(tmp_path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save_model(onnx.parser.parse_model(RELU), path)
    return path


def uncommented(config: Path, until: str = "# Parameters") -> str:
    """The config with its settings taken out of their comments, up to a line."""
    return re.sub(r"^#(?=\S)", "", config.read_text().partition(until)[0], flags=re.MULTILINE)


def offered(config: Path) -> list[str]:
    return re.findall(r"^#(parameters .*)$", config.read_text(), re.MULTILINE)


def source(kind: str, folder: Path) -> Path:
    match kind:
        case "onnx":
            path = folder / "net.onnx"
            onnx.save_model(onnx.parser.parse_model(RELU), path)
        case "not batched":
            path = folder / "fixed"
            onnx.save_model(onnx.parser.parse_model(RELU.replace("N,4", "3,4")), path)
        case "savedmodel":
            path = real_models.path(*PITCH)
        case _:
            path, _ = ncnn_models.image_net(folder)
    return path


@pytest.mark.parametrize("kind", ["onnx", "not batched", "savedmodel", "ncnn"])
def test_it_loads_as_it_is_and_with_every_completed_line_written(tmp_path, kind):
    (folder := tmp_path / "trained").mkdir()
    made = printed(tmp_path, "init", "mine", "--from", source(kind, folder), "--into", tmp_path / "models")
    model = tmp_path / "models" / "mine"
    assert made["folder"] == str(model)
    first = printed(tmp_path, "check", model, env=WITHOUT)
    assert first["loads"]
    (model / "config.pbtxt").write_text(uncommented(model / "config.pbtxt"))
    config = read_pbtxt(model / "config.pbtxt")
    assert config["input"]
    assert config["output"]
    second = printed(tmp_path, "check", model, env=WITHOUT)
    names = re.compile(r'name: "(.*)"')
    assert set(names.findall(second["config"])) == set(names.findall(first["config"]))


def test_every_offered_parameter_is_one_with_a_value_that_it_takes(tmp_path, net, caplog):
    command(tmp_path, "init", "mine", "--from", net, "--into", tmp_path / "models")
    config = tmp_path / "models" / "mine" / "config.pbtxt"
    lines = offered(config)
    for line in lines:
        (tmp_path / "config.pbtxt").write_text(line)
        given = parameters(read_pbtxt(tmp_path / "config.pbtxt"))
        assert read_settings("mine", given, tuple(ENGINES)) != Settings(), line
    assert len(lines) > 8
    assert not caplog.records


def test_parameters_that_the_format_has_not_got_are_not_offered(tmp_path, net):
    for name, path in (("graph", net), ("saved", real_models.path(*PITCH))):
        command(tmp_path, "init", name, "--from", path, "--into", tmp_path / "models")
    texts = {name: (tmp_path / "models" / name / "config.pbtxt").read_text() for name in ("graph", "saved")}
    assert '"signature"' in texts["saved"]
    assert '"signature"' not in texts["graph"]


def test_every_parameter_says_what_it_does():
    """Whoever adds one says it in the docstring that config.pbtxt gets it from."""
    documented = parameter_help(tuple(ENGINES))
    assert documented.keys() == parameter_parsers(tuple(ENGINES)).keys()
    assert all(len(said.what) > 10 for said in documented.values())
    assert documented["graph_optimization"].default == "all"


def test_a_parameter_is_set_from_the_beginning(tmp_path, net):
    command(tmp_path, "init", "mine", "--from", net, "--into", tmp_path / "models", "-p", "graph_optimization=basic")
    model = tmp_path / "models" / "mine"
    assert parameters(read_pbtxt(model / "config.pbtxt")) == {"graph_optimization": "basic"}
    assert printed(tmp_path, "check", model)["loads"]


def test_what_the_file_does_not_tell_is_asked_for(tmp_path):
    path, _ = ncnn_models.image_net(tmp_path, stated=False)
    made = printed(tmp_path, "init", "mine", "--from", path, "--into", tmp_path / "models")
    assert any("the shape of in0 is not known" in note for note in made["notes"])
    config = tmp_path / "models" / "mine" / "config.pbtxt"
    assert "does not tell type and shape of in0: write them" in " ".join(config.read_text().replace("# ", "").split())
    assert printed(tmp_path, "check", config.parent, code=1)["loads"] is False
    config.write_text(re.sub(r"dims: \[3, .*?\]", "dims: [3, 15, 13]", uncommented(config)))
    assert printed(tmp_path, "check", config.parent)["loads"]


def test_external_data_comes_along_and_what_is_no_part_of_the_model_is_named(tmp_path):
    (folder := tmp_path / "trained").mkdir()
    model = onnx.parser.parse_model(RELU.replace("Relu(x)", "Add(x, w)"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    weights = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    (folder / "labels.txt").write_text("a\n")
    made = printed(tmp_path, "init", "mine", "--from", folder, "--into", tmp_path / "models")
    assert made["files"].keys() == {"net.onnx", "weights.bin"}
    assert made["left_out"] == ["labels.txt"]
    assert printed(tmp_path, "check", tmp_path / "models" / "mine")["loads"]
    alone = printed(tmp_path, "init", "alone", "--from", folder / "net.onnx", "--into", tmp_path / "models")
    assert alone["files"].keys() == {"net.onnx", "weights.bin"}
    assert alone["left_out"] == []


def test_a_copy_is_a_file_of_its_own_and_a_link_is_not(tmp_path, net):
    for name, option in (("copied", "--copy"), ("linked", "--link")):
        command(tmp_path, "init", name, "--from", net, "--into", tmp_path / "models", option)
        made = tmp_path / "models" / name / "1" / "net.onnx"
        assert made.read_bytes() == net.read_bytes()
        assert net.samefile(made) is (name == "linked")


def test_without_a_repository_it_is_models_in_the_current_folder(tmp_path, net, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(tmp_path, "init", "mine", "--from", "net.onnx")
    assert (tmp_path / "models" / "mine" / "1" / "net.onnx").is_file()
    said = done.stdout.partition("next:")[2].split("\n")
    assert [line.strip() for line in said if line] == [
        "triton-unified check models/mine",
        "triton-unified serve models",
    ]
    assert command(tmp_path, *said[1].split()[1:]).returncode == 0


def test_a_name_that_triton_cannot_take_is_refused(tmp_path, net):
    done = command(tmp_path, "init", "two words", "--from", net, "--into", tmp_path / "models")
    assert done.returncode == 2
    assert "cannot be a model's name" in done.stderr
    assert not (tmp_path / "models").exists()
    for name in ("", ".hidden", "-dash", "a/b", "..", "naïve", "x" * 256, "a;b", "a%20b", "a\n"):
        with pytest.raises(Refused):
            place_of(name, tmp_path / "models")


def test_nothing_that_is_there_is_touched(tmp_path, net):
    unified_model(tmp_path / "models", "mine")
    before = tree(tmp_path / "models")
    done = command(tmp_path, "init", "mine", "--from", net, "--into", tmp_path / "models")
    assert done.returncode == 2
    assert "is there already: nothing was written" in done.stderr
    inside = command(tmp_path, "init", "deeper", "--from", net, "--into", tmp_path / "models" / "mine")
    assert inside.returncode == 2
    assert "is one model, not a repository" in inside.stderr
    assert tree(tmp_path / "models") == before


def test_a_parameter_that_cannot_be_is_refused(tmp_path, net):
    done = command(tmp_path, "init", "m", "--from", net, "--into", tmp_path / "models", "-p", "graph_optimization=most")
    assert done.returncode == 2
    assert "graph_optimization" in done.stderr
    assert not (tmp_path / "models").exists()


def test_what_is_no_model_is_answered_as_by_inspect(tmp_path):
    (tmp_path / "notes.txt").write_text("no model\n")
    done = command(tmp_path, "init", "mine", "--from", tmp_path / "notes.txt", "--into", tmp_path / "models")
    assert done.returncode == 1
    assert done.stderr == command(tmp_path, "inspect", tmp_path / "notes.txt").stderr
    missing = command(tmp_path, "init", "mine", "--from", tmp_path / "nothing", "--into", tmp_path / "models")
    assert missing.returncode == 2
    assert "is not there" in missing.stderr
    assert not (tmp_path / "models").exists()


def test_a_repository_that_cannot_be_written_is_told(tmp_path, net):
    (tmp_path / "there" / "models").mkdir(parents=True)
    read_only(tmp_path / "there")
    done = command(tmp_path, "init", "mine", "--from", net, "--into", tmp_path / "there" / "models", bound=True)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_a_repository_in_whose_path_triton_would_hang_is_refused(tmp_path, net):
    done = command(tmp_path, "init", "mine", "--from", net, "--into", tmp_path / "my models")
    assert done.returncode == 2
    assert "holds a space" in done.stderr


def test_tensor_names_of_any_letters_stay_one_line_each(tmp_path):
    value = helper.make_tensor_value_info('x"\n}ü', TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph([helper.make_node("Relu", [value.name], ["y"])], "g", [value], [y])
    opset = helper.make_opsetid("", 17)
    (tmp_path / "odd").write_bytes(helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString())
    printed(tmp_path, "init", "mine", "--from", tmp_path / "odd", "--into", tmp_path / "models")
    config = tmp_path / "models" / "mine" / "config.pbtxt"
    config.write_text(uncommented(config))
    assert [row["name"] for row in read_pbtxt(config)["input"]] == [value.name]
