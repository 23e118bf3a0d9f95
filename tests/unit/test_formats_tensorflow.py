"""SavedModels and checkpoints: found, described and refused by what is in their files."""

from __future__ import annotations

import dataclasses
import time
import tracemalloc

import numpy as np
import pytest
import real_models
from google.protobuf import text_format
from graphs import FLOAT, Maker, checkpoint, classifier, saved_model
from unified_backend.cache import FileMemo
from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats import FORMATS, find_source
from unified_backend.settings import Settings

BOOL = 10


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "1").mkdir()
    return tmp_path / "1"


@pytest.fixture
def find(tmp_path, folder):
    return lambda chosen=None: find_source("m/1", folder, FileMemo(tmp_path / "memo"), chosen)


@pytest.fixture
def described(find):
    def describe(**settings):
        source = find()
        return FORMATS[source.format].describe(source.path, Settings(**settings), "m/1")

    return describe


def names(specs):
    return [spec.name for spec in specs]


def graph_of(folder, maker, **settings):
    (folder / "graph").write_bytes(maker.graph.SerializeToString())
    return FORMATS["graphdef"].describe(folder / "graph", Settings(**settings), "m/1")


@pytest.mark.parametrize("inside", ["", "model.savedmodel", "export/model.savedmodel"])
def test_a_saved_model_is_its_folder_wherever_that_lies(folder, find, inside):
    saved_model(folder / inside, variables=True, assets=("words.txt",))
    source = find()
    assert source.format == "savedmodel"
    assert {path.name for path in source.files} == {
        "saved_model.pb",
        "variables.index",
        "variables.data-00000-of-00001",
        "words.txt",
    }


def test_a_saved_model_in_text_is_described_as_in_binary(folder, described):
    model = saved_model(folder)
    binary = described()
    (folder / "saved_model.pb").unlink()
    (folder / "saved_model.pbtxt").write_text(text_format.MessageToString(model))
    assert described() == binary
    assert binary.inner == {"image": "x:0", "label": "y:0"}
    assert binary.inputs[0].shape == (None, 4)


TWO = {"encode": ({"image": "x:0"}, {"code": "logits:0"}), "decode": ({"code": "x:0"}, {"image": "y:0"})}


def test_several_signatures_are_listed_and_one_is_chosen(folder, described):
    saved_model(folder, TWO)
    with pytest.raises(SourceError, match=r'2 signatures: decode, encode.*key: "signature"'):
        described()
    chosen = described(signature="encode")
    assert names(chosen.outputs) == ["code"]
    assert chosen.job == {"signature": "encode", "tags": ["serve"]}
    assert set(chosen.facts["graphs"][0]["signatures"]) == {"encode", "decode"}


def test_serving_default_is_taken_before_others(folder, described):
    saved_model(folder, {**TWO, "serving_default": ({"x": "x:0"}, {"y": "y:0"})})
    assert names(described().outputs) == ["y"]


def test_graphs_of_other_tags_are_chosen_by_tag(folder, described):
    saved_model(folder, tags=(("train",), ("gpu", "serve")))
    with pytest.raises(SourceError, match=r'tagged serve.*train; gpu, serve.*key: "tags"'):
        described()
    assert described(tags=("serve", "gpu")).job["tags"] == ["gpu", "serve"]


def test_outputs_shapes_and_names_are_taken_from_the_parameters(folder, described):
    saved_model(folder, {"serving_default": ({"a": "x:0"}, {"logits": "logits:0", "p": "y:0"})})
    chosen = described(inputs=("a:0[8,4]",), outputs=("y:0",), names=(("p", "probabilities"),))
    assert chosen.inputs[0].shape == (8, 4)
    assert names(chosen.outputs) == ["probabilities"]
    assert chosen.inner == {"a": "x:0", "probabilities": "y:0"}
    with pytest.raises(ConfigError, match=r"names z: the model has logits, p"):
        described(outputs=("z",))
    with pytest.raises(ConfigError, match="one name to two tensors"):
        described(names=(("p", "logits"),))


def test_an_input_and_an_output_of_one_key_are_told_apart(folder, described):
    saved_model(folder, {"serving_default": ({"x": "x:0"}, {"x": "y:0"})})
    told = described()
    assert (names(told.inputs), names(told.outputs)) == (["x"], ["x_output"])
    assert told.inner == {"x": "x:0", "x_output": "y:0"}


def test_a_signature_of_sparse_tensors_is_refused(folder, described):
    model = saved_model(folder)
    info = model.meta_graphs[0].signature_def["serving_default"].inputs["image"]
    info.coo_sparse.values_tensor_name = "x:0"
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match='"image" is a sparse or ragged tensor'):
        described()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("variables/variables.index", "variables/variables.index"),
        ("variables/variables.data-00000-of-00001", "variables/variables.data-00000-of-00001"),
        ("assets/words.txt", "assets/words.txt"),
    ],
)
def test_a_file_of_a_saved_model_that_is_missing_is_named(folder, find, missing, words):
    saved_model(folder, variables=True, assets=("words.txt",))
    (folder / missing).unlink()
    with pytest.raises(SourceError, match=words):
        find()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_variables_behind_a_link_out_of_the_version_folder_are_refused(tmp_path, folder, find, what):
    saved_model(folder, variables=True)
    inside = folder / "variables" / ("variables.index" if what == "file" else "")
    inside.rename(tmp_path / "outside")
    (folder / "variables" / "variables.index" if what == "file" else folder / "variables").symlink_to(
        tmp_path / "outside"
    )
    with pytest.raises(SourceError, match="leads out of its folder"):
        find()


def test_an_asset_that_leads_out_of_the_folder_is_refused(folder, find):
    model = saved_model(folder)
    model.meta_graphs[0].asset_file_def.add(filename="../../../etc/hostname")
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="outside its folder"):
        find()


def test_a_saved_model_that_a_link_names_is_served(tmp_path, folder, find):
    saved_model(tmp_path / "exports", variables=True)
    (folder / "model.savedmodel").symlink_to(tmp_path / "exports")
    assert find().format == "savedmodel"


def test_an_asset_that_is_a_model_is_no_model_of_its_own(folder, find):
    saved_model(folder, assets=("inner.pb",))
    (folder / "assets" / "inner.pb").write_bytes(classifier().graph.SerializeToString())
    assert find().format == "savedmodel"


def test_weights_in_a_graph_take_neither_time_nor_memory(folder):
    maker = classifier()
    maker.constant("big", np.zeros((5_000_000,)))
    maker.node("z", "Mul", "y", "big", T=FLOAT)
    (folder / "graph").write_bytes(maker.graph.SerializeToString())
    del maker
    tracemalloc.start()
    began = time.process_time()
    shown = FORMATS["graphdef"].describe(folder / "graph", Settings(), "m/1")
    assert names(shown.outputs) == ["z"]
    assert time.process_time() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def training_graph(loss_alone=False):
    """A classifier with its labels, loss, accuracy and gradients, as a training script leaves it."""
    maker = Maker()
    maker.placeholder("x", (-1, 4))
    maker.placeholder("labels", (-1, 3))
    maker.placeholder("learning_rate", ())
    maker.placeholder("is_training", (), BOOL)
    maker.placeholder("keep_prob", ())
    maker.node("W", "VariableV2", dtype=FLOAT)
    maker.node("mean", "Mean", "x", T=FLOAT)
    maker.node("bn/moments/Squeeze", "Squeeze", "mean", T=FLOAT)
    maker.node("dropout", "Mul", "x", "keep_prob", T=FLOAT)
    maker.node("logits", "MatMul", "dropout", "W", T=FLOAT)
    maker.node("chosen", "Select", "is_training", "logits", "logits", T=FLOAT)
    maker.node("cross", "SoftmaxCrossEntropyWithLogits", "chosen", "labels", T=FLOAT)
    maker.node("loss", "Mean", "cross", T=FLOAT)
    if not loss_alone:
        maker.node("probabilities", "Softmax", "chosen", T=FLOAT)
    maker.node("loss_summary", "ScalarSummary", "loss", T=FLOAT)
    maker.node("gradients/logits_grad", "MatMul", "dropout", "cross:1", T=FLOAT)
    maker.node("train", "ApplyGradientDescent", "W", "learning_rate", "gradients/logits_grad", T=FLOAT)
    return maker


def test_a_training_checkpoint_serves_its_answers_and_not_its_losses(folder, described):
    checkpoint(folder, "model.ckpt-7", training_graph())
    told = described()
    assert names(told.inputs) == ["x"]
    assert names(told.outputs) == ["probabilities"]
    assert told.job == {"feeds": {"is_training:0": False, "keep_prob:0": 1.0}, "prefix": "model.ckpt-7"}
    assert any("outputs guessed: probabilities" in note for note in told.notes)


def test_a_graph_that_ends_in_its_loss_alone_asks_for_its_outputs(folder, described):
    checkpoint(folder, "m", training_graph(loss_alone=True))
    with pytest.raises(SourceError, match=r'cannot be told from its losses.*key: "outputs"'):
        described()
    assert names(described(outputs=("logits:0",)).outputs) == ["logits"]


def test_a_real_checkpoint_with_an_empty_prefix_serves_its_one_answer(tmp_path):
    source = find_source("m/1", real_models.path("musicnn", "MTT_musicnn"), FileMemo(tmp_path))
    assert [path.name for path in source.files] == [".meta", ".index", ".data-00000-of-00001"]
    told = FORMATS["checkpoint"].describe(source.path, Settings(), "m/1")
    assert [(spec.name, spec.shape) for spec in told.inputs] == [("model/Placeholder", (None, 187, 96))]
    assert [(spec.name, spec.shape) for spec in told.outputs] == [("model/Sigmoid", (None, 50))]
    assert told.job == {"feeds": {"model/Placeholder_2:0": False}, "prefix": ""}


def test_of_several_steps_the_newest_is_taken_whatever_machine_wrote_them(folder, find):
    for step in (9, 10, 100):
        checkpoint(folder, f"model.ckpt-{step}")
    with pytest.raises(SourceError, match=r"3 models found.*model\.ckpt-10\.meta"):
        find()
    assert find("model.ckpt-9").path.name == "model.ckpt-9.meta"
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "/home/someone/run/model.ckpt-10"\nall_model_checkpoint_paths: "model.ckpt-9"\n'
    )
    (folder / "graph.pbtxt").write_text(text_format.MessageToString(classifier().graph))
    assert find().path.name == "model.ckpt-10.meta"


@pytest.mark.parametrize("missing", ["m.index", "m.data-00000-of-00001"])
def test_a_checkpoint_without_its_weights_says_which_file_is_missing(folder, find, missing):
    checkpoint(folder, "m")
    (folder / missing).unlink()
    with pytest.raises(SourceError, match=missing):
        find()


def test_a_shard_that_is_missing_is_named(folder, find):
    checkpoint(folder, "m")
    (folder / "m.data-00000-of-00001").rename(folder / "m.data-00000-of-00002")
    with pytest.raises(SourceError, match=r"m\.data-00001-of-00002"):
        find()


def test_a_checkpoint_without_its_graph_says_so(folder, find):
    source = real_models.path("basic-pitch", "saved_models/icassp_2022/nmp") / "variables"
    for name in ("variables.index", "variables.data-00000-of-00001"):
        (folder / name).write_bytes((source / name).read_bytes())
    with pytest.raises(
        SourceError, match=r"variables\.index \(the index of a TensorFlow checkpoint; its graph.*\.meta"
    ):
        find()


def test_a_graph_with_variables_is_not_frozen(folder):
    maker = Maker()
    maker.placeholder("x", (-1, 4))
    maker.node("v", "VariableV2", dtype=FLOAT)
    maker.node("y", "Mul", "x", "v", T=FLOAT)
    with pytest.raises(SourceError, match=r"not frozen: v \(VariableV2\)"):
        graph_of(folder, maker)


def test_a_graph_that_reads_its_own_data_is_explained_and_can_be_cut(folder):
    maker = Maker()
    maker.node("next", "IteratorGetNext").attr["output_types"].list.type.append(FLOAT)
    maker.node("y", "Relu", "next", T=FLOAT)
    with pytest.raises(SourceError, match=r"no inputs.*reads its own data \(IteratorGetNext\)"):
        graph_of(folder, maker)
    with pytest.raises(SourceError, match=r'next \(IteratorGetNext\).*"next:0'):
        graph_of(folder, maker, outputs=("y",))
    cut = graph_of(folder, maker, inputs=("next:0[-1,4]",))
    assert [(spec.name, spec.dtype, spec.shape) for spec in cut.inputs] == [("next", "FP32", (None, 4))]
    assert names(cut.outputs) == ["y"]


def test_a_placeholder_that_nobody_feeds_is_named(folder):
    maker = classifier()
    maker.placeholder("scale", ())
    maker.node("scaled", "Mul", "y", "scale", T=FLOAT)
    with pytest.raises(SourceError, match="the placeholder scale is not fed"):
        graph_of(folder, maker, inputs=("x",), outputs=("scaled",))
    assert names(graph_of(folder, maker).inputs) == ["x", "scale"]


def test_a_name_that_the_graph_has_not_got_is_answered_with_those_near_it(folder):
    with pytest.raises(ConfigError, match=r'"logit:0".*near it: logits'):
        graph_of(folder, classifier(), outputs=("logit:0",))


def test_a_loops_counter_is_no_output(folder):
    maker = classifier()
    maker.node("while/Exit", "Exit", "logits", T=FLOAT)
    assert names(graph_of(folder, maker).outputs) == ["y"]


def test_a_default_for_a_scalar_is_kept_and_one_for_an_image_may_be_replaced(folder):
    maker = Maker()
    maker.constant("zero", 0)
    maker.placeholder("threshold", (), op="PlaceholderWithDefault").input.append("zero")
    maker.placeholder("image", (-1, 4), op="PlaceholderWithDefault").input.append("zero")
    maker.node("y", "Greater", "image", "threshold", T=FLOAT)
    told = graph_of(folder, maker)
    assert names(told.inputs) == ["image"]
    assert told.outputs[0].dtype == "BOOL"


def test_the_graphs_of_a_description_are_whole(folder, described):
    """What `saved_model_cli show --all` tells, and the operators."""
    saved_model(folder, variables=True, assets=("words.txt",))
    (graph,) = described().facts["graphs"]
    assert graph["tags"] == ["serve"]
    assert graph["tensorflow"] == "2.21.0"
    assert graph["assets"] == ["words.txt"]
    assert graph["operators"]["MatMul"] == 1
    assert graph["signatures"]["serving_default"] == {
        "method": "tensorflow/serving/predict",
        "inputs": {"image": {"name": "x:0", "dtype": "DT_FLOAT", "shape": [-1, 4]}},
        "outputs": {"label": {"name": "y:0", "dtype": "DT_FLOAT", "shape": [-1, 3]}},
    }


def test_a_description_is_values_that_json_holds(folder, described):
    import json

    saved_model(folder, variables=True)
    told = described()
    assert json.loads(json.dumps([told.job, told.facts])) == [told.job, told.facts]
    assert dataclasses.replace(told, notes=()).notes == ()


@pytest.mark.parametrize("chosen", ["m", "m.meta", "m.index", "m.data-00000-of-00001"])
def test_a_checkpoint_is_chosen_by_its_prefix_or_any_of_its_files(folder, find, chosen):
    for prefix in ("m", "other"):
        checkpoint(folder, prefix)
    assert find(chosen).path.name == "m.meta"


def test_a_file_beside_a_graph_of_another_name_is_what_it_is(folder, find):
    checkpoint(folder, "m")
    (folder / "n.index").write_bytes(classifier().graph.SerializeToString())
    assert find("n.index").format == "graphdef"


def test_what_is_refused_tells_its_facts_all_the_same(folder, described):
    saved_model(folder, TWO)
    with pytest.raises(SourceError) as caught:
        described()
    assert set(caught.value.facts["graphs"][0]["signatures"]) == {"encode", "decode"}
    (folder / "saved_model.pb").unlink()
    checkpoint(folder, "m", training_graph(loss_alone=True))
    with pytest.raises(SourceError) as caught:
        described()
    assert caught.value.facts["prefix"] == "m"
    assert "keep_prob" in caught.value.facts["placeholders"]
