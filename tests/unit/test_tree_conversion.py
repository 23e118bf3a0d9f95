"""Models of scikit-learn, LightGBM and XGBoost: what they say, what is refused, what their toolchain makes of them."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import made_models
import numpy as np
import onnxruntime
import pytest
import tree_models
from commands import command, printed
from unified_backend.errors import SourceError
from unified_backend.formats import FORMATS
from unified_backend.settings import Settings

pytestmark = pytest.mark.slow

CLASSES = ("binary.json", "several.ubj", "binary.txt", "several.txt", "forest.skops", "network.skops", "vectors.skops")
NUMBERS = ("regression.json", "regression.ubj", "regression.txt", "boosting.skops")


def convert(home: Path, source: Path, *options: str) -> tuple[int, str]:
    done = command(
        home, "convert", source, "--out", home / "out", *options, env=made_models.toolchain_environment("trees")
    )
    return done.returncode, done.stderr


def report(home: Path) -> dict[str, Any]:
    return json.loads((home / "out" / "report.json").read_text())


@pytest.mark.parametrize("name", [*CLASSES, *NUMBERS, "clusters.skops"])
def test_a_model_is_converted_with_what_its_library_answers(tmp_path, name):
    code, log = convert(tmp_path, tree_models.path(name))
    assert code == 0, log
    told = report(tmp_path)
    outputs = [row["name"] for row in told["signature"]["outputs"]]
    other = {"clusters.skops": "scores"}.get(name, "probabilities")
    assert outputs == (["variable"] if name in NUMBERS else ["label", other])
    assert {row["batch"] for row in told["verified"]} == {1, 3}
    assert max(row["max_abs"] for row in told["verified"]) < 1e-5


def test_names_of_classes_are_answered_as_strings(tmp_path):
    code, log = convert(tmp_path, tree_models.path("logistic.skops"))
    assert code == 0, log
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    flowers = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]], np.float32)
    labels, probabilities = session.run(None, {"input": flowers})
    assert labels.tolist() == ["setosa", "virginica"]
    assert probabilities.shape == (2, 3)


def test_what_the_files_tell_without_their_libraries(tmp_path):
    told = {name: printed(tmp_path, "inspect", tree_models.path(name)) for name in ("several.ubj", "several.json")}
    for row in told.values():
        assert row["format"] == "xgboost"
        assert row["inputs"][0]["shape"] == [-1, 4]
        assert row["facts"]["objective"] == "multi:softprob"
        assert row["facts"]["classes"] == "3"
    light = printed(tmp_path, "inspect", tree_models.path("several.txt"))
    assert (light["format"], light["facts"]["trees"]) == ("lightgbm", 36)
    learned = printed(tmp_path, "inspect", tree_models.path("logistic.skops"))
    assert learned["format"] == "sklearn"
    assert "sklearn.linear_model._logistic.LogisticRegression" in learned["facts"]["estimators"]


def test_a_step_that_would_run_something_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, log = convert(tmp_path, tree_models.path("evil.skops"))
    assert code == 1
    assert "it names functools.partial" in log
    assert not list(tmp_path.rglob("mark"))


@pytest.mark.parametrize(
    ("loader", "module", "name"),
    [
        ("TypeNode", "posix", "mkdir"),
        ("TypeNode", "builtins", "eval"),
        ("FunctionNode", "os.path", "join"),
        ("MethodNode", "sklearn.pipeline", "Pipeline"),
        ("OperatorFuncNode", "operator", "methodcaller"),
        ("ObjectNode", "subprocess", "Popen"),
        ("ReduceNode", "builtins", "getattr"),
    ],
)
def test_a_schema_that_names_anything_of_its_own_is_refused(tmp_path, loader, module, name):
    with zipfile.ZipFile(tree_models.path("logistic.skops")) as archive:
        schema = json.loads(archive.read("schema.json"))
        rest = {entry: archive.read(entry) for entry in archive.namelist() if entry != "schema.json"}
    schema["content"]["content"]["memory"] = {"__loader__": loader, "__module__": module, "__class__": name}
    with zipfile.ZipFile(tmp_path / "evil.skops", "w") as archive:
        for entry, content in {**rest, "schema.json": json.dumps(schema).encode()}.items():
            archive.writestr(entry, content)
    done = command(tmp_path, "inspect", tmp_path / "evil.skops")
    assert done.returncode == 1
    assert f"it names {module}.{name} ({loader})" in done.stderr


def test_a_pickle_of_a_model_is_never_loaded(tmp_path):
    code, log = convert(tmp_path, tree_models.path("forest.joblib"))
    assert code == 1
    assert "it is never loaded" in log


@pytest.mark.parametrize("name", ["several.json", "several.ubj", "several.txt"])
def test_a_truncated_model_is_said_to_be_one(tmp_path, name):
    content = tree_models.path(name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    done = command(tmp_path, "inspect", tmp_path / name)
    assert done.returncode == 1
    assert f"{name} is a truncated " in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-p", 'converter={"zipmap": true}'), "has the option zipmap"),
        (("--signature", "x"), "is served with all of its outputs"),
    ],
)
def test_wrong_parameters_are_refused_with_what_there_is(tmp_path, options, words):
    code, log = convert(tmp_path, tree_models.path("several.txt"), *options)
    assert code == 2, log
    assert words in log.splitlines()[-1]


def test_damaged_bytes_are_read_or_refused_and_nothing_else(tmp_path):
    chance = random.Random(7)
    for name in ("several.json", "several.ubj", "several.txt", "logistic.skops"):
        whole = tree_models.path(name).read_bytes()
        file = tmp_path / name
        for _ in range(60):
            content = bytearray(whole)
            for _ in range(chance.randrange(1, 20)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            file.write_bytes(content)
            try:
                for form in FORMATS.values():
                    if form.detect(file):
                        form.describe(file, Settings(), "made/1")
            except SourceError as error:
                assert error.do
