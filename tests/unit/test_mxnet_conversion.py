"""MXNet's models: what they say without MXNet, and what their toolchain makes of them."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import made_models
import mxnet_models
import numpy as np
import onnxruntime
import pytest
from commands import command, printed
from unified_backend.errors import SourceError
from unified_backend.formats.mxnet import MxNet
from unified_backend.formats.mxnet_params import shapes_of
from unified_backend.settings import Settings

pytestmark = pytest.mark.slow

FACES = Path(__file__).parent.parent / "data" / "mobileface_v2"  # see the README there
FACE_INPUT = ("--inputs", "data[-1,3,112,112]")


def convert(home: Path, source: Path, *options: str) -> tuple[int, str]:
    done = command(
        home, "convert", source, "--out", home / "out", *options, env=made_models.toolchain_environment("mxnet")
    )
    return done.returncode, done.stderr


def report(home: Path) -> dict[str, Any]:
    return json.loads((home / "out" / "report.json").read_text())


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_a_network_of_faces_answers_as_its_reference(tmp_path):
    code, log = convert(tmp_path, FACES, *FACE_INPUT)
    assert code == 0, log
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    reference = np.load(FACES / "reference.npz")
    (answer,) = session.run(None, {"data": reference["X"]})
    np.testing.assert_allclose(answer, reference["Y"], atol=1e-4)
    assert report(tmp_path)["reference"] == "mxnet 1.9.1"


@pytest.mark.parametrize(
    ("name", "options", "outputs"),
    [
        ("cnn", (), 1),
        ("lstm", ("--inputs", "data[-1,7,6]"), 1),
        ("transformer", ("--inputs", "data[-1,5]"), 1),
        ("two_inputs", (), 2),
        ("module", (), 1),
    ],
)
def test_a_model_is_converted_with_an_open_batch(tmp_path, name, options, outputs):
    code, log = convert(tmp_path, mxnet_models.path(name), *options)
    assert code == 0, log
    told = report(tmp_path)
    assert [row["batch"] for row in told["verified"]] == [1] * outputs + [3] * outputs
    assert max(row["max_abs"] for row in told["verified"]) < 1e-5


def test_shapes_are_told_by_the_weights_where_they_can_be():
    def shapes(folder: Path) -> dict[str, Any]:
        (path,) = folder.glob("*-symbol.json")
        described = MxNet().describe(path, Settings(), "made/1")
        return {spec.name: spec.shape for spec in described.inputs}

    assert shapes(mxnet_models.path("cnn")) == {"data": (None, 3, None, None)}
    assert shapes(mxnet_models.path("two_inputs")) == {"data0": (None, 4), "data1": (None, 6)}
    # The label of the loss is no input.
    assert shapes(mxnet_models.path("module")) == {"data": (None, 4)}
    assert shapes(FACES) == {"data": None}


def test_a_shape_that_nothing_tells_is_asked_for_with_what_is_known(tmp_path):
    code, log = convert(tmp_path, FACES)
    assert code == 1
    assert 'input [ { name: "data" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ]' in log
    code, log = convert(tmp_path, FACES, "--inputs", "data[-1,3,64,64]")
    assert code == 1
    assert "Error in operator fc5: Shape inconsistent" in log


def test_an_operator_that_is_not_known_is_named(tmp_path):
    code, log = convert(tmp_path, mxnet_models.path("unknown"))
    assert code == 1
    assert "No conversion function registered for op type arcsinh" in log


def test_the_newest_parameters_of_a_checkpoint_are_taken(tmp_path):
    told = printed(tmp_path, "inspect", mxnet_models.path("module"))
    assert list(told["files"]) == ["net-symbol.json", "net-0012.params"]
    assert told["facts"]["operators"]["SoftmaxOutput"] == 1


def as_before_version_1(folder: Path) -> None:
    """The files of a Module as MXNet 0.9 wrote them: other keys in the graph, arrays without a magic number."""
    graph = folder / "net-symbol.json"
    whole = json.loads(graph.read_text())
    nodes = [
        {
            **{"op": node["op"], "param": node.get("attrs", {}), "name": node["name"]},
            **{"inputs": [entry[:2] for entry in node["inputs"]], "backward_source_id": -1},
        }
        for node in whole["nodes"]
    ]
    heads = [head[:2] for head in whole["heads"]]
    graph.write_text(json.dumps({"nodes": nodes, "arg_nodes": whole["arg_nodes"], "heads": heads}))
    rng = np.random.default_rng(7)
    arrays = {
        "arg:hidden_weight": rng.random((8, 4), np.float32),
        "arg:hidden_bias": rng.random(8, np.float32),
        "arg:scores_weight": rng.random((3, 8), np.float32),
        "arg:scores_bias": rng.random(3, np.float32),
    }
    written = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for array in arrays.values():
        shape = struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape)
        written.append(shape + struct.pack("<iii", 1, 0, 0) + array.tobytes())
    written.append(struct.pack("<Q", len(arrays)))
    written += [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    for file in folder.glob("*.params"):
        file.unlink()
    (folder / "net-0003.params").write_bytes(b"".join(written))


def test_files_from_before_version_1_are_converted(tmp_path):
    folder = copied(mxnet_models.path("module"), tmp_path / "module")
    as_before_version_1(folder)
    code, log = convert(tmp_path, folder)
    assert code == 0, log
    assert max(row["max_abs"] for row in report(tmp_path)["verified"]) < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--opset", "9"), "write 12 to"),
        (("-p", 'converter={"input_shape": [[1, 4]]}'), "stated by the parameter inputs"),
        (("--signature", "x"), "an MXNet graph is served with all of its outputs"),
        (("--inputs", "foo[-1,4]"), 'parameter "inputs" names foo: the model has data'),
        (("-p", "method=x"), "only a TorchScript module has it"),
    ],
)
def test_wrong_parameters_are_refused_with_what_there_is(tmp_path, options, words):
    code, log = convert(tmp_path, mxnet_models.path("module"), *options)
    assert code == 2, log
    assert words in log.splitlines()[-1]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "cnn-0000.params").unlink(), "lacks its parameters"),
        (lambda folder: cut(folder / "cnn-symbol.json"), "cnn-symbol.json is a truncated MXNet graph"),
        (lambda folder: cut(folder / "cnn-0000.params"), "cnn-0000.params is a damaged file of MXNet's parameters"),
        (
            lambda folder: shutil.copy(FACES / "model-0000.params", folder / "cnn-0000.params"),
            "cnn-0000.params lacks",
        ),
        (lambda folder: (folder / "cnn-symbol.json").unlink(), "parameters of MXNet; their graph"),
    ],
)
def test_what_is_missing_or_damaged_is_named(tmp_path, damage, words):
    folder = copied(mxnet_models.path("cnn"), tmp_path / "cnn")
    damage(folder)
    done = command(tmp_path, "inspect", folder)
    assert done.returncode == 1
    assert words in done.stderr


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_bytes_are_read_or_refused_and_nothing_else(tmp_path):
    chance = random.Random(7)
    folder = copied(mxnet_models.path("module"), tmp_path / "module")
    graph, parameters = folder / "net-symbol.json", folder / "net-0012.params"
    wholes = {path: path.read_bytes() for path in (graph, parameters)}
    for number in range(400):
        path = (graph, parameters)[number % 2]
        content = bytearray(wholes[path])
        for _ in range(3):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            if MxNet().detect(graph):
                MxNet().describe(graph, Settings(), "made/1")
            shapes_of(parameters)
        except SourceError as error:
            assert error.do
        path.write_bytes(wholes[path])
