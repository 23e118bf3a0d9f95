"""TensorRT-RTX builds real engines here, for GPUs that are not here; none can run without one."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import real_models
import torch_real_models
from commands import command, printed
from engine_files import CLS, DET, MAGIKA, SQUEEZENET, mnn
from made_models import toolchain_environment
from unified_backend import ahead
from unified_backend.cache import Cache
from unified_backend.engines import Built, Canonical, Threads
from unified_backend.engines.tensorrt import TensorRtRtx
from unified_backend.engines.tensorrt_module import module_of
from unified_backend.errors import EngineError, UnifiedError
from unified_backend.gpus import Gpu
from unified_backend.loading import Described, Loaded, describe, load
from unified_backend.model_keys import engine_key
from unified_backend.settings import Settings
from unified_backend.tensors import Signature

L4 = Gpu(0, "NVIDIA L4", (8, 9))  # stands for one that is not here: builds for it are real
LIGHT = sorted(SQUEEZENET.parent.glob("light_*.onnx"))
HEADER = '<ir_version: 9, opset_import: ["":17, "ai.onnx.ml":3]> '
RELU = f"{HEADER} g (float[N,4] x) => (float[N,4] y) {{ y = Relu(x) }}"
DETECTORS = {"pnet": "-1,-1", "rnet": "24,24", "onet": "48,48"}


def model(folder: Path, source: Path | str) -> Path:
    """A model in a version folder, given as a file or as ONNX's text."""
    folder.mkdir(parents=True)
    if isinstance(source, Path):
        shutil.copy(source, folder)
    else:
        onnx.save(onnx.parser.parse_model(source), folder / "model.onnx")
    return folder


def described(home: Path, source: Path | str, cache: Cache, gpu: Gpu | None = L4, **parameters: str) -> Described:
    folder = home / "models" / "net" / "1"
    if not folder.exists():
        model(folder, source)
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    return describe("net/1", folder, config, cache, gpu=gpu)


def loaded(home: Path, source: Path | str, **parameters: str) -> Loaded:
    """Loaded as on a host with an L4 whose driver does not answer: builds go well, and nothing runs on it."""
    with Cache(home / "cache") as cache:
        return load(described(home, source, cache, **parameters), cache)


def test_without_a_gpu_the_engine_is_refused_with_all_that_is_missing(tmp_path):
    folder = model(tmp_path / "models" / "net.unified" / "1", RELU)
    config = 'parameters {{ key: "engine" value {{ string_value: "{}" }} }}'
    for engine, missing in (("tensorrt", "; the package tensorrt is not installed"), ("tensorrt_rtx", "")):
        (folder.parent / "config.pbtxt").write_text(config.format(engine))
        done = command(tmp_path, "check", folder.parent)
        assert done.returncode == 1
        assert f"no engine takes the model: {engine}: this host has no NVIDIA driver{missing}. " in done.stderr
    (folder.parent / "config.pbtxt").unlink()
    printed = command(tmp_path, "check", folder.parent).stdout.splitlines()
    assert "engine: onnxruntime" in printed
    for engine in ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda"):
        (line,) = [line for line in printed if line.startswith(f"rung {engine}: ")]
        assert line.startswith(f"rung {engine}: not taken: this host has no NVIDIA driver")


def test_a_host_without_a_gpu_does_not_import_it(tmp_path):
    """Nor polygraphy, nor CUDA's bindings: a load there pays nothing."""
    script = f"""
import sys
from pathlib import Path
from unified_backend.cache import Cache
from unified_backend.loading import describe, load
with Cache(Path({str(tmp_path / "cache")!r})) as cache:
    load(describe("net/1", Path({str(model(tmp_path / "models" / "net" / "1", RELU))!r}), {{}}, cache), cache)
heavy = ("tensorrt", "tensorrt_rtx_bindings", "polygraphy", "cuda")
print([name for name in sys.modules if name.partition(".")[0] in heavy])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Every real ONNX model that the tests have, and MTCNN's networks, which are converted to it."""
    home = tmp_path_factory.mktemp("tensorrt")
    pitch = real_models.path("basic-pitch", "saved_models/icassp_2022/nmp.onnx")
    line = CLS.with_name("ch_PP-OCRv4_rec_infer.onnx")
    efficientnet = torch_real_models.path("efficientnet.onnx")
    for source in (CLS, DET, line, MAGIKA, pitch, efficientnet, *LIGHT):
        name = "magika" if source == MAGIKA else source.stem.replace(".", "_")  # what follows a dot is a backend
        model(home / "models" / f"{name}.unified" / "1", source)
    for name, size in DETECTORS.items():
        folder = model(home / "models" / f"{name}.unified" / "1", torch_real_models.path(f"{name}.pt"))
        line = f'parameters {{ key: "inputs" value {{ string_value: "x[-1,3,{size}]" }} }}'
        (folder.parent / "config.pbtxt").write_text(line)
    return home


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_real_model_becomes_an_engine_for_a_gpu_that_is_not_here(repository):
    """And is found there again: built once."""
    arguments = ("build", repository / "models", "--for", "sm89", "--jobs", "2")
    first = printed(repository, *arguments, env=toolchain_environment("torch"))
    for row in first["models"]:
        print(f"{row['model']:45} {row['status']} {row['seconds']:5.1f} s  {row['reason']}")
    assert {row["status"] for row in first["models"]} == {"built"}
    assert len(first["models"]) == 6 + len(LIGHT) + len(DETECTORS)
    assert first["device"] == "sm89"
    second = printed(repository, *arguments, env=toolchain_environment("torch"))
    assert {row["status"] for row in second["models"]} == {"hit"}
    plans = list(repository.glob("cache/entries/**/model.plan"))
    assert len(plans) == len(first["models"])
    assert min(plan.stat().st_size for plan in plans) > 50_000
    shown = printed(repository, "inspect", plans[0].parent)
    assert shown["facts"]["built for"] == ["sm89"]
    assert shown["facts"]["built by"].startswith("TensorRT-RTX 1.")
    assert "convolution" in shown["facts"]["operators"] or "matrix_multiply" in shown["facts"]["operators"]


def test_a_host_with_such_a_gpu_finds_the_engine_that_was_built_ahead(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        target = ahead.target("sm89")
        assert target is not None
        built = described(tmp_path, SQUEEZENET, cache, gpu=target)
        ahead.build_ahead(built, cache)
        (plan,) = cache.store.root.glob("entries/**/model.plan")
        found = described(tmp_path, SQUEEZENET, cache, gpu=Gpu(2, "NVIDIA L40S", (8, 9)), engine="tensorrt_rtx")
        key = engine_key(found.canonical.digest, TensorRtRtx(), found.settings)
        assert plan.parent == cache.store.place(key)
        before = plan.stat().st_ino
        with pytest.raises(EngineError, match="driver"):  # it is loaded, which needs the GPU
            load(found, cache)
        assert found.report.lookups["engine"] == "hit"
        assert plan.stat().st_ino == before


def test_a_gpu_that_tensorrt_rtx_has_nothing_for_is_refused(tmp_path):
    folder = model(tmp_path / "models" / "net.unified" / "1", RELU)
    done = command(tmp_path, "build", folder.parent.parent, "--for", "sm90")
    assert done.returncode == 2
    assert 'nothing can be built for "sm90" here: tensorrt_rtx: it builds for sm75, sm80,' in done.stderr


def test_models_that_are_no_onnx_have_nothing_to_build_ahead(tmp_path):
    folder = model(tmp_path / "models" / "net.unified" / "1", mnn(CLS))
    result = printed(tmp_path, "build", folder.parent.parent, "--for", "sm89", code=1)
    assert result["models"][0]["status"] == "failed"
    assert "mnn is served as it is" in result["models"][0]["reason"]


STOPPED = {
    "operator": (
        "y = ai.onnx.ml.Scaler <offset = [0.0], scale = [2.0]> (x)",
        "float",
        r"tensorrt_rtx: Scaler: Plugin not found, are the plugin name, version, and namespace correct\?;",
    ),
    "type": ("y = Relu(x)", "double", "the model has it as FP64, and the engine would have FP32"),
}


@pytest.mark.parametrize(("node", "dtype", "reason"), STOPPED.values(), ids=STOPPED)
def test_a_model_that_it_does_not_take_goes_to_the_next_rung_with_the_reason(tmp_path, node, dtype, reason):
    served = loaded(tmp_path, f"{HEADER} g ({dtype}[N,4] x) => ({dtype}[N,4] y) {{ {node} }}")
    assert served.engine == "onnxruntime"
    assert re.search(reason, served.reason), served.reason


def test_a_builder_that_is_killed_is_a_message_and_the_next_rung(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for child in psutil.Process().children(recursive=True):
                try:
                    if "unified_backend.engines.tensorrt_build" in child.cmdline():
                        child.kill()
                        killed.append(child.pid)
                except psutil.Error:
                    continue
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    served = loaded(tmp_path, SQUEEZENET)
    killer.join()
    assert killed
    assert "tensorrt_rtx: its process was killed by SIGKILL (the host ran out of memory, perhaps) at: " in served.reason
    assert served.engine == "onnxruntime"
    (answer,) = served.runner.run({"data_0": np.zeros((1, 3, 224, 224), np.float32)}, ["softmaxout_1"])
    assert answer.sum() == pytest.approx(1, abs=1e-3)
    assert "rung model=net/1 engine=tensorrt_rtx taken=no" in caplog.text


def test_a_build_that_takes_too_long_is_ended(tmp_path, monkeypatch, caplog):
    """Densenet takes many seconds, unless it is simplified; each ten of them have a line, here each half."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("unified_backend.engines.tensorrt_child._REPORT_SECONDS", 0.5)
    densenet = next(path for path in LIGHT if "densenet" in path.name)
    with pytest.raises(EngineError, match="it was not done after 2 s, at: ") as failure:
        loaded(tmp_path, densenet, engine="tensorrt_rtx", build_seconds="2", graph_optimization="none")
    assert "tensorrt_rtx: " in failure.value.why
    lines = [
        line.message for line in caplog.records if line.message.startswith("building model=net/1 engine=tensorrt_rtx")
    ]
    assert len(lines) >= 2
    assert 'seconds=1 phase="' in "".join(lines)
    assert not [child for child in psutil.Process().children() if "tensorrt_build" in " ".join(child.cmdline())]


def test_a_build_that_needs_more_memory_than_it_may_take_is_a_message(tmp_path):
    folder = model(tmp_path / "models" / "net.unified" / "1", SQUEEZENET)
    limit = 'parameters { key: "conversion_memory" value { string_value: "400MB" } }'
    (folder.parent / "config.pbtxt").write_text(limit)
    result = printed(tmp_path, "build", folder.parent.parent, "--for", "sm89", code=1)
    assert result["models"][0]["status"] == "failed"
    assert "tensorrt_rtx" in result["models"][0]["reason"]


def test_the_shapes_of_a_config_are_what_is_built(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        shapes = "x:1x3x48x96,2x3x48x192,4x3x48x320 x:1x3x48x640,1x3x48x640,1x3x48x640"
        target = ahead.target("sm120")
        assert target is not None
        built = described(tmp_path, CLS, cache, gpu=target, shapes=shapes)
        ahead.build_ahead(built, cache)
        (manifest,) = [entry.manifest for entry in cache.store.entries() if entry.manifest.key.kind == "engine"]
        assert manifest.facts["profiles"] == [[part] for part in shapes.split(" ")]
        assert manifest.facts["bytes"] > 100_000


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Path:
    """A plan for compute capability 8.9, as somebody else built it."""
    folder = tmp_path_factory.mktemp("plan")
    onnx.save(onnx.parser.parse_model(RELU), folder / "model.onnx")
    with Cache(folder / "cache") as cache:
        target = ahead.target("sm89")
        assert target is not None
        built = described(folder, RELU, cache, gpu=target)
        ahead.build_ahead(built, cache)
        (found,) = cache.store.root.glob("entries/**/model.plan")
        shutil.copy(found, folder / "engine.plan")
    return folder / "engine.plan"


def test_a_plan_is_known_by_its_content_and_needs_a_gpu(tmp_path, plan):
    folder = model(tmp_path / "models" / "net.unified" / "1", plan)
    (folder / "engine.plan").rename(folder / "whatever")
    shown = command(tmp_path, "inspect", folder / "whatever").stdout
    assert "format: plan-rtx" in shown
    assert "built for: sm89" in shown
    done = command(tmp_path, "check", folder.parent)
    assert done.returncode == 1
    assert "no engine takes the plan-rtx model: tensorrt_rtx: this host has no NVIDIA driver" in done.stderr


def served_from(plan: Path, gpu: Gpu) -> None:
    canonical = Canonical("net/1", plan, "", Signature((), ()), format="plan-rtx")
    TensorRtRtx().load(canonical, Built(plan.parent, {}), Settings(gpu=gpu), Threads(1))


def test_a_plan_for_another_gpu_or_version_says_which_and_what_to_do(tmp_path, plan):
    with pytest.raises(UnifiedError, match="driver"):  # cuda-python's own error of this host: it is for this GPU
        served_from(plan, L4)
    with pytest.raises(EngineError, match=r"it was built for sm89, and the GPU is sm120 \(NVIDIA GeForce RTX 5090\)"):
        served_from(plan, Gpu(0, "NVIDIA GeForce RTX 5090", (12, 0)))
    old = bytearray(plan.read_bytes())
    old[24:28] = bytes((1, 0, 0, 21))
    (tmp_path / "old.plan").write_bytes(old)
    with pytest.raises(EngineError, match=r"built by tensorrt_rtx 1\.0\.0\.21, and 1\..* drop the ONNX model"):
        served_from(tmp_path / "old.plan", L4)


def test_a_plan_that_is_cut_short_is_damaged(tmp_path, plan):
    folder = model(tmp_path / "models" / "net.unified" / "1", plan)
    (folder / "engine.plan").write_bytes(plan.read_bytes()[:1000])
    done = command(tmp_path, "check", folder.parent)
    assert done.returncode == 1
    assert "engine.plan is cut short: its header speaks of" in done.stderr


def test_parameters_that_a_plan_has_not_got_are_refused(tmp_path, plan):
    folder = model(tmp_path / "models" / "net.unified" / "1", plan)
    (folder.parent / "config.pbtxt").write_text('parameters { key: "opset" value { string_value: "17" } }')
    done = command(tmp_path, "check", folder.parent)
    assert 'parameter "opset" is set: a TensorRT-RTX plan is served as it is' in done.stderr


# What only a GPU runs: class -> what is called of it.
CALLED = {
    "ICudaEngine": "create_execution_context get_tensor_shape get_tensor_profile_shape get_tensor_dtype "
    "get_tensor_mode get_tensor_name num_io_tensors num_optimization_profiles is_shape_inference_io "
    "device_memory_size_v2 create_engine_inspector",
    "IExecutionContext": "set_device_memory set_optimization_profile_async set_input_shape set_tensor_address "
    "infer_shapes set_output_allocator execute_async_v3",
    "Runtime": "deserialize_cuda_engine get_engine_validity engine_host_code_allowed",
    "OnnxParserRefitter": "refit_from_file",
    "Refitter": "refit_cuda_engine",
    "EngineInspector": "get_engine_information",
}


@pytest.mark.parametrize("name", CALLED)
def test_what_only_a_gpu_runs_is_there_under_its_name(name):
    there = dir(getattr(module_of("tensorrt_rtx"), name))
    assert not [called for called in CALLED[name].split() if called not in there]


def test_an_option_that_it_has_not_got_is_a_message(tmp_path):
    served = loaded(tmp_path, RELU, version_compatible="1")
    assert re.search(r"tensorrt_rtx: .*libnvinfer_lean", served.reason), served.reason
