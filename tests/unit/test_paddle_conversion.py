"""Paddle's models: what they say without Paddle, and what their toolchain makes of them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import made_models
import onnx
import paddle_models
import pytest
from commands import command, printed
from unified_backend.errors import SourceError
from unified_backend.formats import FORMATS
from unified_backend.settings import Settings

pytestmark = pytest.mark.slow


def convert(home: Path, source: Path, *options: str) -> tuple[int, str]:
    done = command(
        home, "convert", source, "--out", home / "out", *options, env=made_models.toolchain_environment("paddle")
    )
    return done.returncode, done.stderr


def report(home: Path) -> dict[str, Any]:
    return json.loads((home / "out" / "report.json").read_text())


@pytest.mark.parametrize("name", ["cnn", "cnn_old", "lstm", "transformer"])
def test_a_model_is_converted_with_an_open_batch(tmp_path, name):
    code, log = convert(tmp_path, paddle_models.path(name))
    assert code == 0, log
    told = report(tmp_path)
    assert told["reference"] == "paddle 3.3.1"
    assert {row["batch"] for row in told["verified"]} == {1, 3}
    assert max(row["max_abs"] for row in told["verified"]) < 1e-5


def test_programs_of_both_forms_tell_their_inputs_and_outputs(tmp_path):
    for name, output in (("cnn", "fetch_name_0"), ("cnn_old", "softmax_0.tmp_0")):
        told = printed(tmp_path, "inspect", paddle_models.path(name))
        assert told["format"] == "paddle"
        (given,), (answer,) = told["inputs"], told["outputs"]
        assert (given["name"], given["dtype"], given["shape"]) == ("image", "FP32", [-1, 3, 16, 16])
        assert (answer["name"], answer["shape"]) == (output, [-1, 5])
    told = printed(tmp_path, "inspect", paddle_models.path("transformer"))
    assert (told["inputs"][0]["dtype"], len(told["outputs"])) == ("INT64", 2)


def test_one_output_of_two_is_served_under_another_name(tmp_path):
    options = ("--outputs", "fetch_name_1", "-p", 'names={"fetch_name_1": "hidden"}')
    code, log = convert(tmp_path, paddle_models.path("transformer"), *options)
    assert code == 0, log
    assert [value.name for value in onnx.load(tmp_path / "out" / "model.onnx").graph.output] == ["hidden"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--opset", "23"), "paddle2onnx writes 7 to 20"),
        (("-p", 'converter={"optimize_tool": "polygraphy"}'), "has the option optimize_tool"),
        (("--signature", "x"), "a Paddle program has neither signatures nor tags"),
    ],
)
def test_wrong_parameters_are_refused_with_what_there_is(tmp_path, options, words):
    code, log = convert(tmp_path, paddle_models.path("cnn"), *options)
    assert code == 2, log
    assert words in log.splitlines()[-1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("cnn", lambda folder: (folder / "inference.pdiparams").unlink(), "lacks its parameters"),
        ("cnn", lambda folder: cut(folder / "inference.json"), "is a truncated Paddle program"),
        ("cnn_old", lambda folder: cut(folder / "inference.pdmodel"), "is a truncated Paddle program"),
    ],
)
def test_what_is_missing_or_damaged_is_named(tmp_path, name, damage, words):
    folder = tmp_path / name
    shutil.copytree(paddle_models.path(name), folder)
    damage(folder)
    done = command(tmp_path, "inspect", folder)
    assert done.returncode == 1
    assert words in done.stderr


def test_parameters_that_are_cut_short_are_refused_by_paddle(tmp_path):
    folder = tmp_path / "cnn"
    shutil.copytree(paddle_models.path("cnn"), folder)
    cut(folder / "inference.pdiparams")
    code, log = convert(tmp_path, folder)
    assert code == 1
    assert "error: cnn: " in log.splitlines()[-1]


def test_damaged_programs_are_read_or_refused_and_nothing_else(tmp_path):
    chance = random.Random(7)
    for name, program in (("cnn", "inference.json"), ("cnn_old", "inference.pdmodel")):
        folder = tmp_path / name
        shutil.copytree(paddle_models.path(name), folder)
        whole = (folder / program).read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(chance.randrange(1, 8)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            (folder / program).write_bytes(content)
            try:
                for form in FORMATS.values():
                    if form.detect(folder / program):
                        form.describe(folder / program, Settings(), "made/1")
            except SourceError as error:
                assert error.do
