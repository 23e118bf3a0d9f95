"""Models of scikit-learn, LightGBM and XGBoost on the real server, without a config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import made_models
import numpy as np
import pytest
import tree_models
from answers import assert_answers, framework_samples
from helpers import Triton, mapped_files, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODELS = {
    "xgboost": "several.ubj",
    "xgboost_json": "regression.json",
    "lightgbm": "binary.txt",
    "pipeline": "logistic.skops",
    "forest": "forest.skops",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trees") / "models"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Triton]:
    folder.mkdir()
    with start_server(folder, made_models.toolchain_environment("trees"), model_control_mode="explicit") as server:
        for name, file in MODELS.items():
            server.add_model(f"{name}.unified", {"1/model": tree_models.path(file)})
            server.load(f"{name}.unified")
        yield server


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_as_its_library_does(server: Triton, folder: Path, name: str):
    assert_answers(server, f"{name}.unified", framework_samples(folder.parent / "cache", f"{name}.unified/1"))


def test_a_pipeline_answers_with_the_names_of_flowers(server: Triton):
    flowers = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]], np.float32)
    assert server.infer("pipeline.unified", {"input": flowers})["label"].ravel().tolist() == [b"setosa", b"virginica"]


def test_a_restarted_server_converts_nothing_and_loads_none_of_the_libraries(server: Triton, folder: Path):
    with start_server(folder, made_models.toolchain_environment("trees"), model_control_mode="explicit") as again:
        for name in MODELS:
            again.load(f"{name}.unified")
        log, mapped = again.log_text(), mapped_files(again.running.pid)
    assert "converting model=" not in log
    assert not [path for path in mapped if "libxgboost" in path or "lib_lightgbm" in path or "/sklearn/" in path]
