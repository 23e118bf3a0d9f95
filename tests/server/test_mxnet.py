"""MXNet's models on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import made_models
import mxnet_models
import numpy as np
import pytest
from answers import assert_answers, framework_samples
from helpers import Triton, mapped_files, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FACES = Path(__file__).parent.parent / "data" / "mobileface_v2"
CONFIG = """backend: "unified"
max_batch_size: 16
input [ { name: "data" data_type: TYPE_FP32 dims: [ 3, 112, 112 ] } ]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mxnet") / "models"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Triton]:
    folder.mkdir()
    with start_server(folder, made_models.toolchain_environment("mxnet"), model_control_mode="explicit") as server:
        faces = {f"1/{name}": FACES / name for name in ("model-symbol.json", "model-0000.params")}
        server.add_model("faces", faces, CONFIG)
        server.load("faces")
        for name in ("cnn", "module"):
            server.add_model(f"{name}.unified", {"1/model": mxnet_models.path(name)})
            server.load(f"{name}.unified")
        yield server


def test_a_network_of_faces_answers_as_its_reference(server: Triton):
    reference = np.load(FACES / "reference.npz")
    (answer,) = server.infer("faces", {"data": reference["X"]}).values()
    np.testing.assert_allclose(answer, reference["Y"], atol=1e-4)


@pytest.mark.parametrize("name", ["cnn", "module"])
def test_a_model_without_a_config_answers_as_mxnet_does(server: Triton, folder: Path, name: str):
    assert_answers(server, f"{name}.unified", framework_samples(folder.parent / "cache", f"{name}.unified/1"))


def test_a_restarted_server_converts_nothing_and_loads_no_mxnet(server: Triton, folder: Path):
    with start_server(folder, made_models.toolchain_environment("mxnet"), model_control_mode="explicit") as again:
        again.load("faces")
        again.load("cnn.unified")
        log, mapped = again.log_text(), mapped_files(again.running.pid)
    assert "converting model=" not in log
    assert not [path for path in mapped if "libmxnet" in path]
