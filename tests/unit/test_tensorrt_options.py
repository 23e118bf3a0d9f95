"""What a config says of TensorRT: profiles, options under the names of Triton's ONNX Runtime backend, and keys."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import command
from unified_backend.engines import Canonical, Threads
from unified_backend.engines.onnxruntime import OnnxRuntime
from unified_backend.engines.profiles import derive, dims_inside, fitting, only_the_batch_varies, ranges_of
from unified_backend.engines.reference import open_reference
from unified_backend.engines.tensorrt import TensorRtRtx
from unified_backend.engines.tensorrt_misses import MissRunner
from unified_backend.errors import ConfigError, RequestError
from unified_backend.gpus import Gpu
from unified_backend.repository import parameters_of
from unified_backend.serving.metrics import ServerMetrics
from unified_backend.settings import Settings, read_settings
from unified_backend.tensorrt_options import ShapeRange
from unified_backend.tensors import Signature, TensorSpec

IMAGES = Signature((TensorSpec("x", "FP32", ("N", 3, None, None)),), (TensorSpec("y", "FP32", ("N", 10)),))
WRITTEN = "x:1x3x224x224,8x3x224x224,32x3x640x640"
L4, L40 = Gpu(0, "NVIDIA L4", (8, 9)), Gpu(3, "NVIDIA L40", (8, 9))


def read(**given: str) -> Settings:
    return read_settings("m/1", given, ("tensorrt", "tensorrt_rtx"))


def profiles(signature: Signature, written: str = "", size: int = 32, preferred: tuple[int, ...] = (), **fixed: int):
    dims = {"x": {int(axis.removeprefix("axis")): value for axis, value in fixed.items()}}
    ranges = read(shapes=written).tensorrt.shapes if written else ()
    return derive("m/1", signature, dims, size, preferred, {}, ranges)


def shown(found) -> list[str]:
    return [" ".join(map(str, profile)) for profile in found]


def test_a_profile_is_derived_from_the_batch_the_config_and_the_models_own_dims():
    assert shown(profiles(IMAGES)) == ["x:1x3x32x32,32x3x224x224,32x3x640x640"]
    assert shown(profiles(IMAGES, axis2=48, axis3=96)) == ["x:1x3x48x96,32x3x48x96,32x3x48x96"]
    assert shown(profiles(IMAGES, size=16, preferred=(4, 8, 64))) == ["x:1x3x32x32,8x3x224x224,16x3x640x640"]
    texts = Signature((TensorSpec("x", "INT64", (None, None)),), ())
    assert shown(profiles(texts, size=0)) == ["x:1x1,128x128,512x512"]
    assert shown(profiles(Signature((TensorSpec("x", "FP32", ()),), ()), size=0)) == ["x:,,"]


def test_a_line_recogniser_keeps_the_one_height_that_it_takes():
    """Its graph leaves the height open; the engine would not build for another."""
    text = """<ir_version: 9, opset_import: ["":17]> g (float[N,1,H,W] x) => (float[N,1,2,W] y) {
        s = Constant<value_ints = [2, 48]>() w = ConstantOfShape<value = float[1] {1.0}>(s) y = MatMul(w, x) }"""
    found = ranges_of(_opened(onnx.parser.parse_model(text)), {}, batched=True)
    assert found == {"x": {2: (48, 48, 48), 3: (32, 224, 640)}}


def test_profiles_are_what_the_config_says():
    assert shown(profiles(IMAGES, WRITTEN)) == [WRITTEN]
    two = "x:1x3x224x224;x:1x3x640x640,2x3x640x640,4x3x640x640"
    assert shown(profiles(IMAGES, two)) == ["x:1x3x224x224,1x3x224x224,1x3x224x224", two.split(";")[1]]
    pair = Signature((*IMAGES.inputs, TensorSpec("k", "INT64", ("N",))), ())
    assert shown(profiles(pair, two))[1] == f"{two.split(';')[1]} k:1,32,32"  # what is not named is derived


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("z:1x3x8x8", "the model's inputs are x"),
        ("x:1x3x8", "4 dimensions, the batch included"),
        ("x:1x4x8x8", "dimension 1 of x is 3"),
        ("x:64x3x8x8", "max_batch_size is 32"),
    ],
)
def test_shapes_that_do_not_fit_the_model_are_refused(written, why):
    with pytest.raises(ConfigError, match=f'm/1: parameter "shapes".*{why}'):
        profiles(IMAGES, written)


@pytest.mark.parametrize(
    "written", ["x", "x:", "x:1x3,2x3", "x:1x3,2x3,1x3", "x:1x3,2x3x4,3x3", "x:0x3", "1x3x8x8", "x:1x-1", "x:1x3,,2x3"]
)
def test_shapes_that_are_none_are_refused(written):
    with pytest.raises(ConfigError, match='parameter "shapes" is'):
        read(shapes=written)


def test_a_request_goes_to_the_first_profile_that_holds_it():
    found = profiles(IMAGES, "x:1x3x224x224,4x3x224x224,8x3x224x224 x:1x3x32x32,8x3x224x224,32x3x640x640")
    assert fitting(found, {"x": (8, 3, 224, 224)}) == 0
    assert fitting(found, {"x": (9, 3, 224, 224)}) == 1
    assert fitting(found, {"x": (1, 3, 641, 32)}) is None
    assert fitting(found, {"x": (3, 224, 224)}) is None
    assert dims_inside(found, {"x": {3: 96}}, batched=True) == {"x": {1: 3, 2: 224, 3: 96}}
    assert dims_inside((), {"x": {3: 96}}, batched=True) == {"x": {3: 96}}


def test_only_where_the_batch_alone_varies_are_buffers_kept_for_the_largest():
    fixed = {"x": {2: 48, 3: 96}}
    assert only_the_batch_varies(IMAGES, fixed, 32, profiles(IMAGES, axis2=48, axis3=96))
    assert not only_the_batch_varies(IMAGES, {}, 32, profiles(IMAGES, "x:1x3x48x96,8x3x48x96,32x3x48x96"))
    assert not only_the_batch_varies(IMAGES, fixed, 32, profiles(IMAGES, "x:4x3x48x96", axis2=48, axis3=96))


def accelerated(**options: str) -> dict[str, object]:
    accelerator = {"name": "tensorrt", "parameters": options}
    return {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}}


def test_a_config_of_tritons_onnx_runtime_backend_means_the_same_here():
    config = accelerated(
        precision_mode="FP32",
        max_workspace_size_bytes="1073741824",
        trt_engine_cache_enable="1",
        trt_builder_optimization_level="5",
        trt_profile_min_shapes="x:1x3x224x224",
        trt_profile_opt_shapes="x:8x3x224x224",
        trt_profile_max_shapes="x:32x3x640x640",
        trt_engine_hw_compatible="true",
    )
    options = read_settings("m/1", parameters_of(config, "m/1"), ()).tensorrt
    assert options.shapes == (ShapeRange("x", (1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 640, 640)),)
    assert options.builder_optimization_level == 5
    assert options.max_workspace_size_bytes == 2**30
    assert options.hardware_compatibility == "ampere_plus"
    own = {**config, "parameters": {"builder_optimization_level": {"string_value": "1"}}}
    assert read_settings("m/1", parameters_of(own, "m/1"), ()).tensorrt.builder_optimization_level == 1
    there = {"parameters": {"trt_sparsity_enable": {"string_value": "1"}}}
    assert read_settings("m/1", parameters_of(there, "m/1"), ()).tensorrt.sparsity


def test_what_such_a_config_asks_for_in_vain_is_said(caplog):
    given = parameters_of(accelerated(precision_mode="FP16", trt_fast="1"), "m/1")
    assert given == {}
    assert 'unknown TensorRT option ignored model=m/1 option="trt_fast"' in caplog.text
    assert 'option="precision_mode"' in caplog.text
    assert "give the model in that precision" in caplog.text
    with pytest.raises(ConfigError, match=r"trt_profile_.*do not fit together"):
        parameters_of(accelerated(trt_profile_min_shapes="x:1x3"), "m/1")


def rtx_key(gpu: Gpu = L4, **given: str) -> dict[str, object]:
    settings = read(**given)
    found = derive("m/1", IMAGES, {}, 32, (), {}, settings.tensorrt.shapes)
    return TensorRtRtx().key_fields(replace(settings, gpu=gpu, profiles=found))


def test_an_engine_of_tensorrt_rtx_is_for_every_gpu_of_a_compute_capability():
    assert rtx_key(L4) == rtx_key(L40) == rtx_key(Gpu(-1, "sm89", (8, 9)))
    assert rtx_key(L4) != rtx_key(Gpu(0, "NVIDIA A10", (8, 6)))


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"shapes": WRITTEN}, True),
        ({"builder_optimization_level": "5"}, True),
        ({"max_workspace_size_bytes": "1GB"}, True),
        ({"hardware_compatibility": "ampere_plus"}, True),
        ({"version_compatible": "1"}, True),
        ({"strip_plan": "1"}, True),
        ({"sparsity": "1"}, True),
        ({"tf32": "1"}, True),
        ({"plugins": onnx.__file__}, True),
        ({"profile_miss": "reject"}, False),
        ({"timing_cache": "0"}, False),
        ({"build_seconds": "5"}, False),
    ],
)
def test_what_changes_an_engine_is_in_its_key(given, changes):
    assert (rtx_key(**given) != rtx_key()) is changes


def test_plugins_that_cannot_be_read_are_refused():
    with pytest.raises(ConfigError, match=r'parameter "plugins" names /nowhere\.so'):
        rtx_key(plugins="/nowhere.so")


RELU = '<ir_version: 9, opset_import: ["":17]> g (float[N,W] x) => (float[N,W] y) { y = Relu(x) }'


def _opened(model: onnx.ModelProto):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        onnx.save(model, path)
        return open_reference("m/1", path, Settings())[0]


def test_a_request_outside_every_profile_is_answered_by_the_next_engine_and_counted(tmp_path, caplog):
    """Both engines are ONNX Runtime here: no TensorRT engine runs without a GPU."""
    onnx.save(onnx.parser.parse_model(RELU), tmp_path / "m.onnx")
    signature = _opened(onnx.parser.parse_model(RELU)).signature
    canonical = Canonical("m/1", tmp_path / "m.onnx", "digest", signature)
    loads = []

    def load_next():
        loads.append(1)
        return OnnxRuntime().load(canonical, None, Settings(), Threads(1))

    found = derive("m/1", signature, {}, 4, (), {}, read(shapes="x:1x2,2x2,4x8").tensorrt.shapes)
    runner = MissRunner("m/1", "tensorrt", _opened(onnx.parser.parse_model(RELU)), found, load_next)
    x = np.linspace(-1, 1, 8, dtype=np.float32)
    for shape, misses in (((4, 2), 0), ((1, 8), 0), ((8, 1), 1), ((8, 1), 2), ((2, 4), 2)):
        (y,) = runner.run({"x": x.reshape(shape)}, ["y"])
        np.testing.assert_array_equal(y, np.maximum(x, 0).reshape(shape))
        assert runner.misses["tensorrt"] == misses
        assert len(loads) == bool(misses)
    assert caplog.text.count("profile missed model=m/1 engine=tensorrt") == 1
    runner.close()
    strict = MissRunner("m/1", "tensorrt", _opened(onnx.parser.parse_model(RELU)), found, None)
    with pytest.raises(RequestError, match=r"x 8x1.*x 1x2 to 4x8"):
        strict.run({"x": x.reshape(8, 1)}, ["y"])
    assert strict.misses["tensorrt"] == 1


class Recorder:
    """Stands for Triton's module, which exists inside a server alone, and keeps what is counted."""

    TritonModelException = RuntimeError

    def __init__(self) -> None:
        self.counted: dict[tuple[str, str], float] = {}
        outer = self

        class MetricFamily:
            COUNTER, GAUGE = 0, 1

            def __init__(self, name: str, description: str, kind: int) -> None:
                self.name = name

            def Metric(self, labels: dict[str, str]):  # noqa: N802 - Triton's name
                family = self.name

                class Metric:
                    def increment(self, value: float) -> None:
                        key = family, labels.get("engine", "")
                        outer.counted[key] = outer.counted.get(key, 0) + value

                return Metric()

        self.MetricFamily = MetricFamily


def test_misses_are_a_metric_whether_or_not_anything_else_was_counted():
    triton = Recorder()
    metrics = ServerMetrics(triton, "m", "1")
    misses = metrics.profile_misses = Counter({"tensorrt": 2})
    misses["tensorrt"] += 1
    metrics.close()
    assert triton.counted == {("unified_profile_misses_total", "tensorrt"): 3}


def test_a_config_as_it_is_written_is_read(tmp_path):
    """The text of config.pbtxt, as such a user has it; a profile of another model's input is refused by name."""
    onnx.save(onnx.parser.parse_model(RELU), tmp_path / "m.onnx")
    folder = tmp_path / "models" / "m.unified" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "m.onnx").rename(folder / "m.onnx")
    options = "".join(
        f'parameters {{ key: "trt_profile_{side}_shapes" value: "image:1x3" }} ' for side in ("min", "opt", "max")
    )
    accelerator = f'gpu_execution_accelerator [ {{ name: "tensorrt" {options} }} ]'
    (folder.parent / "config.pbtxt").write_text(f"optimization {{ execution_accelerators {{ {accelerator} }} }}")
    done = command(tmp_path, "check", folder.parent)
    assert done.returncode == 1
    assert 'parameter "shapes" has image:1x3,1x3,1x3: the model\'s inputs are x' in done.stderr
