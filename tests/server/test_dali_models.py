"""Model directories as Triton's DALI backend has them, on the real server, with nothing changed but `backend`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as httpclient
from helpers import UNIFIED, Triton, infer
from photographs import column, photographs, pixels, resized
from transports import at_once
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


# A table's first rows, as many as the request says, the table's sums, and each line of a picture as a row of its own.
ROWS = """
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize


@autoserialize
@pipeline_def(batch_size=3, num_threads=1, device_id=None, output_dtype=[types.FLOAT] * 2, output_ndim=[2, 1])
def first():
    table = fn.external_source(name="TABLE", dtype=types.FLOAT, ndim=2)
    count = fn.external_source(name="COUNT", dtype=types.INT32, ndim=1)
    rows = fn.slice(table, start=[0], shape=count, axes=[0], out_of_bounds_policy="pad")
    return rows, fn.reductions.sum(table, axes=[0])
"""
LINES = """
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize


@autoserialize
@pipeline_def(batch_size=3, num_threads=1, device_id=None)
def lines():
    files = fn.external_source(name="ENCODED", dtype=types.UINT8, ndim=1)
    image = fn.decoders.image(files, output_type=types.RGB)
    return image, fn.cast(image.shape(), dtype=types.INT32)
"""
SPLIT = 'parameters { key: "split_along_outer_axis" value { string_value: "NAMES" } }\n'
# Long enough for requests that are sent together to meet in one execution, on a busy machine too.
TOGETHER = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 200000 }\n"


def split(names: str, *outputs: str) -> str:
    written = ", ".join(f"{{ {output} }}" for output in outputs)
    return f"{UNIFIED}{SPLIT.replace('NAMES', names)}output [ {written} ]\n"


def answers_in_few_executions(
    triton: Triton, model: str, requests: Sequence[Mapping[str, np.ndarray]]
) -> list[dict[str, np.ndarray] | InferenceServerException]:
    """The answers to requests that meet in fewer executions than there are requests."""
    answers = at_once(triton, model, requests)
    [statistics] = triton.client.get_inference_statistics(model)["model_stats"]
    assert int(statistics["execution_count"]) < len(requests), "every request was executed by itself"
    return answers


FIRST = 'input [ { name: "COUNT" dims: [ 1 ] } ]\n'


def table(*counts: int) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(counts).random((len(counts), 6, 2), np.float32)
    return {"TABLE": numbers, "COUNT": np.array(counts, np.int32)[:, None]}


def test_each_request_of_a_batch_gets_the_rows_of_its_own_samples(triton: Triton) -> None:
    config = split("ROWS", 'name: "ROWS" data_type: TYPE_FP32 dims: [ 2 ]', 'name: "SUM"') + FIRST + TOGETHER
    with triton.serving("first", {"1/dali.py": ROWS.encode()}, config) as model:
        # 4 samples with 4 rows together, and yet not a row each: cut by samples, each request would get two.
        requests = [table(1, 3), table(0, 0), table(6), table(2, 5), table(0), table(1), table(4, 1, 2)]
        for feeds, answer in zip(requests, answers_in_few_executions(triton, model, requests), strict=True):
            assert isinstance(answer, dict), answer
            pairs = zip(feeds["TABLE"], feeds["COUNT"][:, 0], strict=True)
            np.testing.assert_array_equal(answer["ROWS"], np.concatenate([rows[:count] for rows, count in pairs]))
            np.testing.assert_allclose(answer["SUM"], feeds["TABLE"].sum(1), rtol=1e-5)


def test_lines_of_pictures_and_a_bad_file_among_them(triton: Triton) -> None:
    config = split("LINES", 'name: "LINES" data_type: TYPE_UINT8 dims: [ -1, 3 ]', 'name: "SHAPE"') + TOGETHER
    chosen = [["astronaut"], ["camera", "astronaut"], ["tall", "bad"], ["tall", "chelsea"], ["tall"]]
    files = FILES | {"bad": b"no image"}
    length = max(map(len, files.values()))
    requests = [{"ENCODED": padded(*(files[name].ljust(length, b"\0") for name in names))} for names in chosen]
    with triton.serving("lines", {"1/dali.py": LINES.encode()}, config) as model:
        answers = answers_in_few_executions(triton, model, requests)
    for names, answer in zip(chosen, answers, strict=True):
        if names == ["tall", "bad"]:
            assert "sample 1 of 2" in str(answer)
            assert "no image of a kind that can be decoded" in str(answer)
        elif names == ["tall", "chelsea"]:
            assert 'output "LINES" is no batch' in str(answer)
        else:
            assert isinstance(answer, dict), answer
            pictures = [pixels(FILES[name]) for name in names]
            np.testing.assert_array_equal(answer["LINES"], np.concatenate(pictures))
            assert answer["SHAPE"].tolist() == [list(picture.shape) for picture in pictures]


def test_split_outputs_are_completed_and_wrong_ones_refused(triton: Triton) -> None:
    source = {"1/dali.py": ROWS.encode()}
    with triton.serving("completed", source, split("ROWS:SUM", 'name: "ROWS"', 'name: "SUM"') + FIRST) as model:
        assert triton.config(model)["max_batch_size"] == 32
        assert triton.config(model)["output"][0]["dims"] == [-1]
        sums = triton.infer(model, table(1, 1))["SUM"]
        np.testing.assert_allclose(sums.ravel(), table(1, 1)["TABLE"].sum(1).ravel(), rtol=1e-5)
    refusal = triton.refusal("unknown", source, split("OTHER", 'name: "ROWS"', 'name: "SUM"'))
    assert "names OTHER: the model's outputs are ROWS, SUM" in refusal
    wide = "max_batch_size: 8 " + split("ROWS", 'name: "ROWS" dims: [ -1, 2 ]', 'name: "SUM"')
    assert "the ranks differ" in triton.refusal("wide", source, wide)
    scalar = {"1/dali.py": ROWS.replace("axes=[0])\n", "axes=[0, 1])\n").replace("[2, 1]", "[2, 0]").encode()}
    assert "is one number, and has no axis" in triton.refusal(
        "scalar", scalar, split("SUM", 'name: "A"', 'name: "SUM"')
    )
    stage = {**source, "1/preprocess.py": b"pass\n"}
    assert "stages around it" in triton.refusal("staged", stage, split("ROWS", 'name: "ROWS"', 'name: "SUM"'))
