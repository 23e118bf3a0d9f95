"""Model directories as Triton's DALI backend has them, on the real server, with nothing changed but `backend`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as httpclient
from helpers import UNIFIED, Triton, infer
from photographs import column, photographs, pixels, resized
from tritonclient.utils import InferenceServerException

FILES = photographs()
PIPELINE = """
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize


@autoserialize
@pipeline_def(batch_size=3, num_threads=1, device_id=None)
def decode():
    files = fn.external_source(name="ENCODED", dtype=types.UINT8, ndim=1)
    image = fn.decoders.image(files, output_type=types.RGB)
    small = fn.resize(image, size=[30, 40], antialias=True, subpixel_scale=False)
    return small, fn.cast(image.shape(), dtype=types.INT32)
"""
CONFIG = """
name: "NAME"
backend: "unified"
max_batch_size: 16
input [ { name: "ENCODED" data_type: TYPE_UINT8 dims: [ -1 ] } ]
output [
  { name: "DALI_OUTPUT_0" data_type: TYPE_UINT8 dims: [ 30, 40, 3 ] },
  { name: "DALI_OUTPUT_1" data_type: TYPE_INT32 dims: [ 3 ] }
]
dynamic_batching { max_queue_delay_microseconds: 50000 }
"""


@pytest.fixture(scope="module", params=["dali.py", "model.dali"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | Path]:
    if request.param == "dali.py":
        return {"1/dali.py": PIPELINE.encode()}
    folder = tmp_path_factory.mktemp("serialised")
    program = PIPELINE + "\nopen('model.dali', 'wb').write(decode().serialize())\n"
    (folder / "make.py").write_text(program)
    subprocess.run([sys.executable, "make.py"], cwd=folder, check=True)
    return {"1/model.dali": folder / "model.dali"}


def padded(*files: bytes) -> np.ndarray:
    """Files below one another, filled up with zeros."""
    array = np.zeros((len(files), max(map(len, files))), np.uint8)
    for row, file in zip(array, files, strict=True):
        row[: len(file)] = np.frombuffer(file, np.uint8)
    return array


def right(small: np.ndarray, shape: np.ndarray, name: str) -> bool:
    picture = pixels(FILES[name])
    difference = np.abs(small.astype(int) - resized(picture, (30, 40)))[1:-1, 1:-1]
    return bool(shape.tolist() == list(picture.shape) and difference.max() <= 1)


@pytest.fixture(scope="module")
def model(triton: Triton, source: dict[str, bytes | Path]) -> Iterator[str]:
    with triton.serving("decode", source, CONFIG.replace('name: "NAME"', "")) as name:
        yield name


def test_padded_batches_answer_under_the_config_s_names(triton: Triton, model: str) -> None:
    names = list(FILES)
    for chosen in (names, names[:1], names[1:4]):
        answer = triton.infer(model, {"ENCODED": padded(*(FILES[name] for name in chosen))})
        assert sorted(answer) == ["DALI_OUTPUT_0", "DALI_OUTPUT_1"]
        for row, name in enumerate(chosen):
            assert right(answer["DALI_OUTPUT_0"][row], answer["DALI_OUTPUT_1"][row], name)


def test_a_bad_file_fails_its_own_request(triton: Triton, model: str) -> None:
    def answer(name: str) -> bool:
        file = FILES.get(name, name.encode())
        with httpclient.InferenceServerClient(triton.url) as client:
            found = infer(client, model, {"ENCODED": padded(file)})
        return right(found["DALI_OUTPUT_0"][0], found["DALI_OUTPUT_1"][0], name)

    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(answer, name) for name in FILES]
        bad = [pool.submit(answer, text) for text in ("no image", "neither is this")]
        assert all(future.result() for future in good)
        for future in bad:
            with pytest.raises(InferenceServerException, match="no image of a kind that can be decoded"):
                future.result()


def test_files_as_strings(triton: Triton, source: dict[str, bytes | Path]) -> None:
    config = CONFIG.replace('name: "NAME"', "").replace("TYPE_UINT8 dims: [ -1 ]", "TYPE_STRING dims: [ 1 ]")
    with triton.serving("strings", source, config) as model:
        answer = triton.infer(model, {"ENCODED": column(*FILES.values())})
        for row, name in enumerate(FILES):
            assert right(answer["DALI_OUTPUT_0"][row], answer["DALI_OUTPUT_1"][row], name)


def test_a_config_of_one_line_is_completed(triton: Triton, source: dict[str, bytes | Path]) -> None:
    with triton.serving("bare", source, UNIFIED) as model:
        config = triton.config(model)
        assert [(row["name"], row["data_type"], row["dims"]) for row in config["input"]] == [
            ("ENCODED", "TYPE_UINT8", [-1])
        ]
        assert [(row["data_type"], row["dims"]) for row in config["output"]] == [
            ("TYPE_UINT8", [-1, -1, -1]),
            ("TYPE_INT32", [-1]),
        ]
        assert config["max_batch_size"] == 32


def test_a_config_that_contradicts_the_pipeline_is_refused(triton: Triton, source: dict[str, bytes | Path]) -> None:
    config = CONFIG.replace('name: "NAME"', "")
    assert "ENCODES" in triton.refusal("misnamed", source, config.replace('"ENCODED"', '"ENCODES"'))
    assert "DALI_OUTPUT_1" in triton.refusal("mistyped", source, config.replace("TYPE_INT32", "TYPE_FP32"))


def test_a_pipeline_that_does_not_run_is_refused_with_its_line(triton: Triton) -> None:
    broken = PIPELINE.replace("fn.resize", "fn.resise")
    assert "dali.py:11" in triton.refusal("broken", {"1/dali.py": broken.encode()}, UNIFIED)


def test_parameters_of_triton_s_dali_backend(triton: Triton, source: dict[str, bytes | Path]) -> None:
    line = 'parameters {{ key: "{}" value {{ string_value: "{}" }} }}\n'
    with triton.serving("threads", source, UNIFIED + line.format("num_threads", 3)) as model:
        answer = triton.infer(model, {"ENCODED": padded(FILES["tall"])})
        assert right(*(array[0] for array in answer.values()), "tall")
        assert "num_threads" not in "".join(
            part for part in triton.log_text().splitlines() if "unknown parameter" in part
        )
    assert "outputs with more samples" in triton.refusal(
        "split", source, UNIFIED + line.format("split_along_outer_axis", "DALI_OUTPUT_0")
    )
