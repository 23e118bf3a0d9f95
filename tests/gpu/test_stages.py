"""Files decoded on a GPU, in this process and in a real Triton; compared with what the CPU makes of the same files."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from helpers import UNIFIED, Triton, start_server
from photographs import column, encoded, photographs
from skimage import data
from tritonclient.utils import InferenceServerException
from unified_backend.cache import Cache
from unified_backend.engines import EachRunner
from unified_backend.engines.device import DeviceRunner
from unified_backend.errors import UnifiedError
from unified_backend.gpus import Gpu, driver
from unified_backend.loading import Loaded, describe, load
from unified_backend.stages.staged import StagedRunner
from unified_backend.variables import CacheSettings

# What the network is given, so that its pixels can be compared.
PIXELS = (
    """<ir_version: 9, opset_import: ["":17]> g (float[N,3,224,224] x) => (float[N,3,224,224] y) { y = Identity (x) }"""
)
MIXED = """
from nvidia.dali import fn, pipeline_def, types

@pipeline_def(output_dtype=types.FLOAT, output_ndim=3)
def preprocess():
    files = fn.external_source(name="image", dtype=types.UINT8, ndim=1)
    images = fn.resize(fn.decoders.image(files, device="mixed", output_type=types.RGB), size=[224, 224])
    return fn.crop_mirror_normalize(images, dtype=types.FLOAT, mean=0.0, std=255.0, output_layout="CHW")
"""
FILES = {
    **{name: content for name, content in photographs().items() if name != "camera"},
    "page": encoded(np.stack([data.page()] * 3, -1)),
    "rocket": encoded(data.rocket()),
}
DAMAGED = FILES["chelsea"][:2000]


def loaded(folder: Path, cache: Cache, gpu: Gpu | None, preprocess: str | None) -> Loaded:
    version = folder / "net" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.onnx").write_bytes(onnx.parser.parse_model(PIXELS).SerializeToString())
    parameters = {}
    if preprocess:
        parameters["preprocess"] = {"string_value": preprocess}
    else:
        (version / "preprocess.py").write_text(MIXED)
    config = {"name": "net", "max_batch_size": 8, "parameters": parameters}
    return load(describe("net/1", version, config, cache, True, gpu), cache)


@pytest.fixture(params=["imagenet", "image(size=224, resize=224, original=true)", None], ids=["preset", "also", "own"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[StagedRunner]]:
    """One stage in its two places: on the GPU, on the CPU."""
    cache = Cache.from_settings(CacheSettings(tmp_path / "cache"))
    runners = []
    for gpu in (driver().gpus[0], None):
        runner = loaded(tmp_path / str(gpu is None), cache, gpu, request.param).runner
        assert isinstance(runner, StagedRunner)
        runners.append(runner)
    yield runners
    for runner in runners:
        runner.close()
    cache.close()


def answered(runner: EachRunner, *requests: np.ndarray[Any, Any]) -> list[Any]:
    names = [spec.name for spec in runner.signature.outputs]
    return runner.finish(runner.prepare([{"image": request} for request in requests]), names)


def test_the_gpu_s_pixels_are_the_cpu_s(both: list[StagedRunner]) -> None:
    on_gpu, on_cpu = both
    assert isinstance(on_gpu.runner, DeviceRunner)
    requests = [column(*list(FILES.values())[:3]), column(FILES["page"]), column(FILES["tall"], FILES["rocket"])]
    for one, other in zip(answered(on_gpu, *requests), answered(on_cpu, *requests), strict=True):
        assert set(one) == set(other)
        scale = float(np.abs(other["y"]).max())
        difference = np.abs(one["y"] - other["y"])
        # Decoders of JPEG may round otherwise; a picture that is shifted or whose channels are swapped is far off.
        assert difference.mean() < 0.01 * scale
        assert np.quantile(difference, 0.999) < 0.06 * scale
        for name in set(one) - {"y"}:
            assert one[name].shape == other[name].shape
            assert np.abs(one[name].astype(int) - other[name].astype(int)).mean() < 2


def test_a_damaged_file_fails_alone_on_the_gpu_too(both: list[StagedRunner]) -> None:
    on_gpu, _ = both
    good, bad, last = answered(on_gpu, column(FILES["coffee"]), column(FILES["tall"], DAMAGED), column(FILES["page"]))
    assert isinstance(bad, UnifiedError)
    assert "sample 1 of 2" in str(bad)
    alone = answered(on_gpu, column(FILES["coffee"]), column(FILES["page"]))
    for one, other in zip((good, last), alone, strict=True):
        np.testing.assert_allclose(one["y"], other["y"], atol=1e-3)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    repository = tmp_path_factory.mktemp("stages") / "models"
    repository.mkdir()
    with start_server(repository, model_control_mode="explicit") as server:
        yield server


def test_clients_at_once_get_their_own_pictures(triton: Triton) -> None:
    config = UNIFIED + 'max_batch_size: 8\nparameters { key: "preprocess" value { string_value: "imagenet" } }'
    model = onnx.parser.parse_model(PIXELS).SerializeToString()
    with triton.serving("pictures", {"1/model.onnx": model}, config) as name:
        assert "engine=onnxruntime_cuda" in triton.log_text()

        def ask(content: bytes) -> np.ndarray[Any, Any]:
            client = grpcclient.InferenceServerClient(triton.grpc_url)
            value = grpcclient.InferInput("image", [1, 1], "BYTES")
            value.set_data_from_numpy(np.array([[content]], object))
            return client.infer(name, [value]).as_numpy("y")

        alone = {place: ask(content) for place, content in FILES.items()}

        def client(number: int) -> None:
            for turn in range(20):
                if (number + turn) % 20 == 0:
                    with pytest.raises(InferenceServerException, match="image"):
                        ask(DAMAGED)
                    continue
                place = list(FILES)[(number + turn) % len(FILES)]
                np.testing.assert_allclose(ask(FILES[place]), alone[place], atol=1e-3)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(client, range(16)))
