"""What a version folder holds: found by content, or said in words."""

from __future__ import annotations

import gzip
import pickle
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from unified_backend.cache import FileMemo
from unified_backend.errors import SourceError
from unified_backend.formats import find_source


def model(location: str | None = None) -> bytes:
    """Y = X + w, [N, 64]; with its weights in a file of their own if a location is given."""
    weights = numpy_helper.from_array(np.ones(64, np.float32), "w")
    if location is not None:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("length", "256")):
            entry = weights.external_data.add()
            entry.key, entry.value = key, value
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in "XY")
    graph = helper.make_graph([helper.make_node("Add", ["X", "w"], ["Y"])], "add", [x], [y], [weights])
    return helper.make_model(graph, ir_version=8).SerializeToString()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "1").mkdir()
    return tmp_path / "1"


@pytest.fixture
def find(tmp_path, folder):
    return lambda chosen=None: find_source("m/1", folder, FileMemo(tmp_path / "memo"), chosen)


@pytest.mark.parametrize("name", ["model.onnx", "weights", "x.bin", "model.onnx/model.onnx", "a/b/net.pb"])
def test_onnx_is_found_under_any_name(folder, find, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model())
    (folder / "labels.txt").write_text("cat\ndog\n")
    assert find().format == "onnx"
    assert find().path == path


def test_a_model_without_an_ir_version_in_front_is_found(folder, find):
    loaded = onnx.load_model_from_string(model())
    loaded.ClearField("ir_version")
    (folder / "m").write_bytes(loaded.SerializeToString())
    assert find().format == "onnx"


def test_external_data_belongs_to_the_model(folder, find):
    (folder / "m").write_bytes(model("data/weights.bin"))
    (folder / "data").mkdir()
    (folder / "data" / "weights.bin").write_bytes(bytes(256))
    assert find().files == (folder / "m", folder / "data" / "weights.bin")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("weights.bin", "lacks a file that belongs to it"),
        ("../weights.bin", "outside its folder"),
        ("/etc/hostname", "outside"),
    ],
)
def test_external_data_that_cannot_be_used_is_named(folder, find, location, words):
    (folder / "m").write_bytes(model(location))
    with pytest.raises(SourceError, match=words) as caught:
        find()
    assert location in str(caught.value)


CONTENTS = {
    "empty": (b"", "empty"),
    "random": (np.random.default_rng(0).bytes(4000), "unknown, 4000 bytes"),
    "zeros": (bytes(4000), "unknown, 4000 bytes"),
    "html": (b"<!DOCTYPE html><html>404</html>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
    "pickle": (pickle.dumps({"a": 1}, protocol=4), "pickle"),
    "gzip": (gzip.compress(b"x"), "gzip"),
    "text": (b"hello world, this is a readme\n", "text"),
}


@pytest.mark.parametrize(("content", "words"), CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_is_no_model_is_described(folder, find, content, words):
    (folder / "thing").write_bytes(content)
    with pytest.raises(SourceError) as caught:
        find()
    assert str(caught.value).startswith("m/1: no model found: the folder holds thing (")
    assert words in str(caught.value)


def test_a_zip_is_described(folder, find):
    with zipfile.ZipFile(folder / "net.pt", "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(SourceError, match="zip archive"):
        find()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_model_says_so(folder, find, share):
    whole = model()
    (folder / "m").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SourceError, match=r"truncated ONNX file.*Copy it again"):
        find()


def test_a_damaged_graph_says_so(folder, find):
    broken = bytearray(model())
    start = broken.index(b"Add")
    broken[start - 8 : start] = b"\xff" * 8
    (folder / "m").write_bytes(broken)
    with pytest.raises(SourceError, match="damaged ONNX file"):
        find()


def test_several_models_are_listed_and_one_can_be_chosen(folder, find):
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(model())
    with pytest.raises(SourceError, match=r"2 models found.*a\.onnx, b\.onnx.*\"source\""):
        find()
    assert find("b.onnx").path.name == "b.onnx"


def test_a_chosen_source_that_is_missing_or_outside_is_refused(folder, find):
    (folder / "a.onnx").write_bytes(model())
    for chosen in ("c.onnx", "../secret"):
        with pytest.raises(SourceError, match=r"not found.*a\.onnx"):
            find(chosen)


def test_hidden_files_are_not_models(folder, find):
    (folder / ".backup.onnx").write_bytes(model())
    with pytest.raises(SourceError, match="no model found: the folder holds no file"):
        find()


def test_advice_on_a_choice_is_for_the_command_line_and_for_a_config(folder, find):
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(model())
    with pytest.raises(SourceError) as caught:
        find()
    assert caught.value.why == "the folder holds a.onnx, b.onnx"
    assert caught.value.do == (
        "Keep one, or choose it: name its file in place of the folder, or in config.pbtxt "
        'parameters { key: "source" value { string_value: "a.onnx" } }'
    )
