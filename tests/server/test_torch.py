"""PyTorch's models on the real server: zero-config where they tell their shapes, by config.pbtxt where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import made_models
import numpy as np
import pytest
import torch_models
from answers import assert_answers, framework_samples
from helpers import Triton, mapped_files, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ZERO_CONFIG = ("classifier_traced.pt", "lstm_traced.pt", "transformer_traced.pt", "attention.pt2", "named.pt2")
# As for Triton's own PyTorch backend: tensors by their numbers.
SEVERAL = """backend: "unified"
max_batch_size: 16
input [
  { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "INPUT__1" data_type: TYPE_FP32 dims: [ 4 ] }
]
output [
  { name: "scores__0" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "best__1" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] } }
]
"""
# Its branches look at all rows at once.
BRANCHES = """backend: "unified"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1, 4 ] } ]
parameters { key: "arguments" value { string_value: "{\\"times\\": 2}" } }
"""
PIXELS = """backend: "unified"
max_batch_size: 8
input [ { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] } ]
"""


def name_of(file: str) -> str:
    return file.replace(".", "_")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torch") / "models"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Triton]:
    folder.mkdir()
    with start_server(folder, made_models.toolchain_environment("torch"), model_control_mode="explicit") as server:
        for file in ZERO_CONFIG:
            server.add_model(f"{name_of(file)}.unified", {"1/model": torch_models.path(file)})
            server.load(f"{name_of(file)}.unified")
        server.add_model("several", {"1/model.pt": torch_models.path("several_scripted.pt")}, SEVERAL)
        server.add_model("traced", {"1/model.pt": torch_models.path("several_traced.pt")}, SEVERAL)
        server.add_model("exported", {"1/model.pt2": torch_models.path("several.pt2")}, SEVERAL)
        server.add_model("pixels", {"1/model.pt": torch_models.path("pixels_scripted.pt")}, PIXELS)
        server.add_model("branches", {"1/model.pt": torch_models.path("control_flow_scripted.pt")}, BRANCHES)
        server.add_model("unknown.unified", {"1/lstm.pt": torch_models.path("lstm_scripted.pt")})
        yield server


@pytest.mark.parametrize("file", ZERO_CONFIG)
def test_a_model_that_tells_its_shapes_is_served_as_it_is(server: Triton, folder: Path, file: str):
    model = f"{name_of(file)}.unified"
    assert_answers(server, model, framework_samples(folder.parent / "cache", f"{model}/1"))


@pytest.mark.parametrize("model", ["several", "traced", "exported"])
def test_a_model_is_served_with_the_config_of_tritons_own_backend(server: Triton, folder: Path, model: str):
    server.load(model)
    samples = framework_samples(folder.parent / "cache", f"{model}/1")
    assert [sample.batch for sample in samples] == [1, 3]
    for sample in samples:
        assert set(sample.feeds) == {"INPUT__0", "INPUT__1"}
        answers = server.infer(model, dict(sample.feeds))
        np.testing.assert_allclose(answers["scores__0"], sample.expected["scores__0"], atol=1e-5)
        np.testing.assert_array_equal(answers["best__1"].ravel(), sample.expected["best__1"])


def test_dimensions_that_the_config_leaves_open_stay_open(server: Triton):
    server.load("pixels")
    for height, width in ((48, 40), (33, 65)):
        image = np.random.default_rng(1).integers(0, 255, (2, height, width, 3), np.uint8)
        assert server.infer("pixels", {"image": image})["OUTPUT__0"].shape == (2, 4)


def test_a_module_with_branches_and_loops_takes_them_by_its_input(server: Triton, folder: Path):
    server.load("branches")
    assert_answers(server, "branches", framework_samples(folder.parent / "cache", "branches/1"))
    below, above = (server.infer("branches", {"x": np.full((1, 4), x, np.float32)})["OUTPUT__0"] for x in (-5, 5))
    np.testing.assert_array_equal(below, np.full((1, 4), -7, np.float32))
    assert not np.allclose(above, above.round())


def test_a_scripted_module_without_a_config_is_refused_with_the_lines_to_write(server: Triton):
    reason = server.refusal_of("unknown.unified")
    assert "the shape of x is not known" in reason
    assert 'input [ { name: "x" data_type: TYPE_FP32' in reason


def test_a_restarted_server_converts_nothing_and_loads_no_torch(server: Triton, folder: Path):
    with start_server(folder, made_models.toolchain_environment("torch"), model_control_mode="explicit") as again:
        again.load("lstm_traced_pt.unified")
        again.load("several")
        assert_answers(
            again, "lstm_traced_pt.unified", framework_samples(folder.parent / "cache", "lstm_traced_pt.unified/1")
        )
        log, mapped = again.log_text(), mapped_files(again.running.pid)
    assert "converting model=" not in log
    assert not [path for path in mapped if "/torch/" in path]
