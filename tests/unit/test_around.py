"""What a user's own stages and the model beside them must agree on: told at load, with both sides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unified_backend.errors import ConfigError
from unified_backend.gpus import Gpu
from unified_backend.settings import Settings
from unified_backend.stages.around import Around, surroundings
from unified_backend.stages.decoders import without_gpu_decoders
from unified_backend.tensors import Signature, TensorSpec

X, Y = TensorSpec("x", "FP32", ("N", 3, 224, 224)), TensorSpec("y", "FP32", ("N", 10))
NET = Signature((X,), (Y,))
PYTHON = """
from unified_backend.stages.user import stage

@stage(inputs={inputs}, outputs={outputs})
def work({parameters}):
    raise AssertionError("nothing is run at load")
"""
DALI = """
from nvidia.dali import fn, pipeline_def, types

@pipeline_def(output_dtype=types.FLOAT, output_ndim=3)
def preprocess():
    files = fn.external_source(name="photo", dtype=types.UINT8, ndim=1)
    small = SMALL
    return fn.crop_mirror_normalize(small, dtype=types.FLOAT, output_layout="CHW", name="x")
"""
IMAGE = "fn.decoders.image(files, output_type=types.RGB)"


@pytest.fixture
def around(tmp_path: Path):
    """The stages around a model, from the files of its version folder."""

    def found(gpu: Gpu | None = None, **files: str) -> Around:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return surroundings("net/1", tmp_path, Settings(gpu=gpu), {})

    return found


def python(inputs: dict[str, str], outputs: dict[str, str], parameters: str = "") -> str:
    return PYTHON.format(inputs=inputs, outputs=outputs, parameters=parameters or ", ".join(inputs))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (
            {"x": "FP32[-1,3,200,200]"},
            r'preprocess\.py has FP32 \[-1, 3, 200, 200\] as "x": the model takes FP32 \[-1, 3, 224, 224\] as "x"',
        ),
        ({"x": "FP16[-1,3,224,224]"}, 'has FP16 .* the model takes FP32 .* as "x".*Convert'),
        ({"x": "FP32[-1,3,224]"}, r"has FP32 \[-1, 3, 224\]"),
        ({"z": "FP32[-1,3,200,-1]"}, r'has FP32 \[-1, 3, 200, -1\] as "z": the model takes .* as "x"'),
    ],
)
def test_what_a_stage_gives_must_be_what_the_model_takes(around, outputs, words):
    with pytest.raises(ConfigError, match=words):
        around(preprocess=python({"raw": "UINT8[-1,-1]"}, outputs)).signature(NET, {})


def test_what_a_stage_takes_must_be_what_the_model_gives(around):
    words = r'postprocess\.py has FP32 \[-1, 12\] as "y": the model gives FP32 \[-1, 10\] as "y"'
    with pytest.raises(ConfigError, match=words):
        around(postprocess=python({"y": "FP32[-1,12]"}, {"z": "FP32[-1,1]"})).signature(NET, {})
    fitting = around(postprocess=python({"y": "FP32[-1,-1]"}, {"z": "FP32[-1,1]"}))
    assert [spec.name for spec in fitting.signature(NET, {}).outputs] == ["z"]


def test_names_of_which_one_alone_is_the_model_s(around):
    """By their places they would be taken for one another."""
    two = Signature((TensorSpec("ids", "INT64", ("N", 8)), TensorSpec("mask", "INT64", ("N", 8))), (Y,))
    outputs = {"maks": "INT64[-1,8]", "ids": "INT64[-1,8]"}
    with pytest.raises(ConfigError, match=r'gives "maks": the model has no such input, .*ids, mask'):
        around(preprocess=python({"text": "STRING[-1,1]"}, outputs)).signature(two, {})
    others = {"first": "INT64[-1,8]", "second": "INT64[-1,8]"}
    signature = around(preprocess=python({"text": "STRING[-1,1]"}, others)).signature(two, {})
    assert [spec.name for spec in signature.inputs] == ["text"]


@pytest.mark.parametrize(
    ("inputs", "parameters", "words"),
    [
        ({"raw": "UINT8[-1,4]"}, "row", r"they are raw: missing a required argument: 'row' \(line 4\)"),
        ({"raw": "UINT8[-1,4]"}, "raw, more", "missing a required argument: 'more'"),
        ({"raw": "UINT8[-1,4]", "more": "FP32[-1]"}, "raw", "got an unexpected keyword argument 'more'"),
        ({}, "", "declares no inputs"),
    ],
)
def test_a_function_that_cannot_be_called_as_it_declares(around, inputs, parameters, words):
    stages = around(preprocess=python(inputs, {"x": "FP32[-1,3,224,224]"}, parameters))
    with pytest.raises(ConfigError, match=rf"net/1: preprocess\.py: work .*{words}"):
        stages.signature(NET, {})


def test_sizes_that_a_dali_pipeline_gives_whatever_it_is_sent(around):
    fixed = DALI.replace("SMALL", f"fn.resize({IMAGE}, size=[200, 224])")
    words = r'preprocess\.py has FP32 \[-1, 3, 200, 224\] as "x": the model takes FP32 \[-1, 3, 224, 224\] as "x"'
    with pytest.raises(ConfigError, match=words):
        around(preprocess=fixed).signature(NET, {})
    open_net = Signature((TensorSpec("x", "FP32", ("N", 3, "H", "W")),), (Y,))
    any_channels = fixed.replace("200", "224").replace("types.RGB", "types.ANY_DATA")
    grey_net = Signature((TensorSpec("x", "FP32", ("N", 1, 224, 224)),), (Y,))
    for text, net in (
        (fixed, open_net),
        (fixed.replace("200", "224"), NET),
        (DALI.replace("SMALL", IMAGE), NET),
        (any_channels, grey_net),
    ):
        assert [spec.dims for spec in around(preprocess=text).signature(net, {}).inputs] == [[-1, 1]]


def test_before_a_model_without_a_batch_dimension_there_is_one_row(around):
    one = Signature((TensorSpec("x", "FP32", (1, 3, 224, 224)),), (TensorSpec("y", "FP32", (1, 10)),))
    stages = around(preprocess=DALI.replace("SMALL", f"fn.resize({IMAGE}, size=[224, 224])"))
    assert [spec.shape for spec in stages.signature(one, {}).inputs] == [(1, 1)]
    assert [spec.shape for spec in stages.signature(NET, {}).inputs] == [(None, 1)]


def test_a_stage_is_built_once_to_be_asked(around, tmp_path):
    counting = "from pathlib import Path\nPath(__file__).with_name('runs').open('a').write('.')\n"
    stages = around(preprocess=counting + python({"raw": "UINT8[-1,4]"}, {"x": "FP32[-1,3,224,-1]"}))
    half = Signature((TensorSpec("x", "FP32", ("N", 3, "H", "W")),), (Y,))
    stages.signature(half, {})
    assert stages.fixed(half) == {"x": {2: 224}}
    assert (tmp_path / "runs").read_text() == "."


def test_decoders_of_the_gpu_stay_where_the_model_has_one(around, monkeypatch):
    """To be asked a stage is built for the CPU, and nvImageCodec looks for its decoders but once in a process."""
    monkeypatch.delenv("NVIMGCODEC_EXTENSIONS_PATH", raising=False)
    without_gpu_decoders.cache_clear()
    text = DALI.replace("SMALL", f"fn.resize({IMAGE}, size=[224, 224])")
    around(Gpu(0, "NVIDIA L4", (8, 9)), preprocess=text).signature(NET, {})
    assert "NVIMGCODEC_EXTENSIONS_PATH" not in os.environ
    around(preprocess=text).signature(NET, {})
    chosen = {path.name for path in Path(os.environ["NVIMGCODEC_EXTENSIONS_PATH"]).iterdir()}
    assert chosen
    assert not any("nvjpeg" in name for name in chosen)
