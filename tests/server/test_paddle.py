"""Paddle's models on the real server, without a config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import made_models
import paddle_models
import pytest
from answers import assert_answers, framework_samples
from helpers import Triton, mapped_files, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODELS = ("cnn", "cnn_old", "transformer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paddle") / "models"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Triton]:
    folder.mkdir()
    with start_server(folder, made_models.toolchain_environment("paddle"), model_control_mode="explicit") as server:
        for name in MODELS:
            server.add_model(f"paddle_{name}.unified", {"1/model": paddle_models.path(name)})
            server.load(f"paddle_{name}.unified")
        yield server


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_as_paddle_does(server: Triton, folder: Path, name: str):
    model = f"paddle_{name}.unified"
    assert_answers(server, model, framework_samples(folder.parent / "cache", f"{model}/1"))


def test_a_restarted_server_converts_nothing_and_loads_no_paddle(server: Triton, folder: Path):
    with start_server(folder, made_models.toolchain_environment("paddle"), model_control_mode="explicit") as again:
        for name in MODELS:
            again.load(f"paddle_{name}.unified")
        log, mapped = again.log_text(), mapped_files(again.running.pid)
    assert "converting model=" not in log
    assert not [path for path in mapped if "/paddle/" in path]
