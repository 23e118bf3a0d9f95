"""TensorRT and TensorRT-RTX on a GPU that they have something for; every answer is compared with the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from engine_files import CLS, DET, SQUEEZENET
from unified_backend import ahead
from unified_backend.cache import Cache
from unified_backend.engines.device import DeviceRunner
from unified_backend.engines.tensorrt_misses import MissRunner
from unified_backend.errors import RequestError
from unified_backend.forms.reference import ENGINES, PROFILED
from unified_backend.gpus import driver
from unified_backend.loading import Loaded, describe, load

USABLE = [name for name in PROFILED if driver().gpus and not ENGINES[name].unusable(driver().gpus[0])]
CLOSE = {"rtol": 0.0, "atol": 1e-3}
pytestmark = pytest.mark.skipif(not USABLE, reason="neither TensorRT nor TensorRT-RTX can be used on this GPU")


@pytest.fixture(params=USABLE or ["none"])
def loaded(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Loaded]]:
    """Load a model on the first GPU with one of the engines that can be used there."""
    cache = Cache(tmp_path / "cache")
    models = []

    def made(source: Path, dims: list[int] | None = None, **parameters: str) -> Loaded:
        folder = tmp_path / "models" / "net" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / source.name).write_bytes(source.read_bytes())
        config: dict[str, Any] = {
            "parameters": {name: {"string_value": value} for name, value in parameters.items()},
        }
        if dims:
            config |= {"max_batch_size": 8, "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": dims}]}
        config["parameters"]["engine"] = {"string_value": request.param}
        models.append(load(describe("net/1", folder, config, cache, bool(dims), driver().gpus[0]), cache))
        return models[-1]

    yield made
    for one in models:
        one.runner.close()
    cache.close()


def agrees(model: Loaded, source: Path, *shapes: tuple[int, ...]) -> None:
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    (name,) = [spec.name for spec in model.runner.signature.inputs]
    outputs = [spec.name for spec in model.runner.signature.outputs]
    for number, shape in enumerate(shapes):
        feeds = {name: np.random.default_rng(number).random(shape, np.float32)}
        answers = model.runner.run(feeds, outputs)
        for mine, expected in zip(answers, session.run(outputs, feeds), strict=True):
            np.testing.assert_allclose(mine, expected, **CLOSE)


def test_a_model_of_one_shape(loaded: Callable[..., Loaded]) -> None:
    agrees(loaded(SQUEEZENET), SQUEEZENET, (1, 3, 224, 224), (1, 3, 224, 224))


def test_every_batch_of_fixed_rows_with_cuda_graphs(loaded: Callable[..., Loaded]) -> None:
    model = loaded(CLS, [3, 48, 192])
    assert isinstance(model.runner, DeviceRunner)
    agrees(model, CLS, *((rows, 3, 48, 192) for rows in (*range(1, 9), 11)))


def test_images_of_any_size_that_are_not_square(loaded: Callable[..., Loaded]) -> None:
    agrees(loaded(DET), DET, (1, 3, 64, 96), (2, 3, 320, 64), (1, 3, 32, 32), (4, 3, 224, 224))


def test_a_shape_outside_the_profile_is_answered_and_counted_or_refused(loaded: Callable[..., Loaded]) -> None:
    shapes = "x:1x3x64x64,1x3x64x64,2x3x128x128"
    model = loaded(DET, shapes=shapes)
    assert isinstance(model.runner, MissRunner)
    model.runner.misses.clear()
    agrees(model, DET, (1, 3, 64, 128), (1, 3, 256, 64), (3, 3, 64, 64))
    assert model.runner.misses.total() == 2
    strict = loaded(DET, shapes=shapes, profile_miss="reject")
    with pytest.raises(RequestError, match="outside the engine's profiles"):
        agrees(strict, DET, (3, 3, 64, 64))


def test_outputs_whose_size_depends_on_the_data(loaded: Callable[..., Loaded], tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["":17]> g (float[N,4] x) => (int64[2,M] y) { y = NonZero(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "nonzero.onnx")
    model = loaded(tmp_path / "nonzero.onnx")
    x = np.array([[0, 1, 0, 2], [3, 0, 0, 0]], np.float32)
    assert model.runner.run({"x": x}, ["y"])[0].tolist() == [[0, 0, 1], [1, 3, 0]]


def test_an_engine_that_was_built_ahead_is_verified_once(loaded: Callable[..., Loaded], tmp_path: Path) -> None:
    if "tensorrt_rtx" not in USABLE:
        pytest.skip("TensorRT-RTX cannot be used on this GPU")
    folder = tmp_path / "models" / "net" / "1"
    folder.mkdir(parents=True)
    (folder / CLS.name).write_bytes(CLS.read_bytes())
    gpu = driver().gpus[0]
    target = ahead.target(gpu.architecture)
    assert target is not None
    config = {"parameters": {"engine": {"string_value": "tensorrt_rtx"}}}
    with Cache(tmp_path / "other") as cache:
        ahead.build_ahead(describe("net/1", folder, config, cache, gpu=target), cache)
        for found in ("made", "hit"):
            described = describe("net/1", folder, config, cache, gpu=gpu)
            load(described, cache).runner.close()
            assert described.report.lookups["engine"] == "hit"
            assert described.report.lookups["verification"] == found
