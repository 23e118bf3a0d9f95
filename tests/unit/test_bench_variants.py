"""What `bench` serves: the models that a path names, with other configs, in a repository aside."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from commands import RELU, tree, unified_model
from pipelines import write_pipeline
from unified_backend.cache import Cache
from unified_backend.errors import Refused
from unified_backend.loading import open_cache
from unified_backend.measuring.subjects import Subject, subjects_of
from unified_backend.measuring.variants import Variant, combinations, write_repository
from unified_backend.pbtxt import gives_max_batch_size, read_pbtxt
from unified_backend.repository import parameters

CONFIG = """backend: "unified"
max_batch_size: 0
instance_group { count: 3 kind: KIND_CPU }
parameters { key: "engine" value { string_value: "openvino" } }
parameters { key: "build" value { string_value: "background" } }
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("TRITON_UNIFIED_CACHE", str(tmp_path / "cache"))
    return open_cache()


def found(path: Path, aside: Path, cache: Cache) -> list[Subject]:
    return subjects_of(path, aside, cache)[1]


def test_a_models_config_is_kept_but_for_what_is_asked(tmp_path: Path, cache: Cache) -> None:
    model = unified_model(tmp_path / "models", "relu", config=CONFIG)
    before = tree(tmp_path / "models")
    [subject] = found(model, tmp_path / "aside", cache)
    variant = Variant(precision="fp16", instances=2, queue_delay_us=100).over(subject.config)
    assert variant.id == "openvino fp16 x2 delay 100 us"
    write_repository(subject, variant, tmp_path / "served")
    config = read_pbtxt(tmp_path / "served/relu/config.pbtxt")
    assert parameters(config) == {"engine": "openvino", "precision": "fp16", "build": "block"}
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": "100"}
    assert gives_max_batch_size(tmp_path / "served/relu/config.pbtxt")  # 0 is still written there
    assert (tmp_path / "served/relu/1").is_symlink()  # nothing is copied
    assert tree(tmp_path / "models") == before


def test_two_runs_name_the_same_thing_alike(tmp_path: Path, cache: Cache) -> None:
    [subject] = found(unified_model(tmp_path, "relu", config=CONFIG), tmp_path / "aside", cache)
    asked = [way.over(subject.config).id for way in combinations(["openvino"], [], [3], [])]
    assert asked == [Variant().over(subject.config).id] == ["openvino x3"]


def test_a_file_is_served_out_of_its_folder_among_others(tmp_path: Path, cache: Cache) -> None:
    for name in ("a b.onnx", "other.onnx"):
        onnx.save(onnx.parser.parse_model(RELU), tmp_path / name)
    [subject] = found(tmp_path / "a b.onnx", tmp_path / "aside", cache)
    assert subject.name == "a_b"
    write_repository(subject, Variant(), tmp_path / "served")
    assert parameters(read_pbtxt(tmp_path / "served/a_b/config.pbtxt")) == {"source": "a b.onnx"}


def test_a_repository_gives_its_models_and_what_is_wrong_with_one(tmp_path: Path, cache: Cache) -> None:
    repository = tmp_path / "models"
    unified_model(repository, "good.unified")
    unified_model(repository, "wrong", config='backend: "unified"\nmax_batch: 3\n')
    unified_model(repository, "foreign", config='backend: "onnxruntime"\n')
    kind, subjects = subjects_of(repository, tmp_path / "aside", cache)
    assert kind == "repository"
    assert [(one.name, one.form) for one in subjects] == [("good.unified", "good.unified"), ("wrong", "wrong")]
    assert "does not parse" in subjects[1].problem


def test_an_engine_goes_to_the_models_of_a_pipeline_and_not_to_its_stages(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "sums").mkdir()
    ensemble, fused = found(write_pipeline(tmp_path / "sums"), tmp_path / "aside", cache)
    assert {model.name for model in ensemble.models} == {"sums", "sums_make", "add", "sums_join"}
    variant = Variant("openvino", instances=2)
    write_repository(ensemble, variant, tmp_path / "one")
    configs = {path.parent.name: read_pbtxt(path) for path in (tmp_path / "one").glob("*/config.pbtxt")}
    engines = {name: parameters(config).get("engine") for name, config in configs.items()}
    assert engines == {"sums": None, "sums_make": None, "add": "openvino", "sums_join": None}
    assert configs["add"]["instance_group"] == configs["sums_join"]["instance_group"] == [{"count": 2}]
    write_repository(fused, variant, tmp_path / "other")
    inner = read_pbtxt(tmp_path / "other/sums/1/models/add/config.pbtxt")
    assert parameters(inner)["engine"] == "openvino"
    assert "instance_group" not in inner
    assert read_pbtxt(tmp_path / "other/sums/config.pbtxt")["instance_group"] == [{"count": 2}]


def test_what_is_not_there_is_refused(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(Refused, match="is not there"):
        found(tmp_path / "nothing", tmp_path / "aside", cache)
    unified_model(tmp_path / "models", "foreign", config='backend: "onnxruntime"\n')
    with pytest.raises(Refused, match="no model of this backend"):
        found(tmp_path / "models", tmp_path / "aside", cache)
