"""TensorRT asked for in a server that has no GPU: refused in words, and passed over where it was not asked for."""

from __future__ import annotations

import os
from pathlib import Path

from helpers import UNIFIED, Triton, add_model, command, doubles, doubling_onnx


def test_an_engine_that_needs_a_gpu_is_refused_and_auto_goes_on(triton: Triton) -> None:
    wanted = f'{UNIFIED}parameters {{ key: "engine" value {{ string_value: "tensorrt" }} }}\n'
    message = triton.refusal("wanted", {"1/m.onnx": doubling_onnx()}, wanted)
    assert "tensorrt: this host has no NVIDIA driver; the package tensorrt is not installed" in message
    with triton.serving("open", {"1/m.onnx": doubling_onnx()}) as model:
        assert doubles(triton.url, model, shape=(1, 4))


def test_a_plan_is_recognised_and_needs_a_gpu(triton: Triton, tmp_path: Path) -> None:
    """Under the name that Triton's core would take for its own backend, were it not for the config."""
    add_model(tmp_path / "models", "net.unified", {"1/m.onnx": doubling_onnx()})
    environment = {**os.environ, "TRITON_UNIFIED_CACHE": str(tmp_path / "cache")}
    built = command("build", tmp_path / "models", "--for", "sm89", env=environment)
    assert built.returncode == 0, built.stderr
    (plan,) = tmp_path.glob("cache/entries/**/model.plan")
    message = triton.refusal("plan", {"1/model.plan": plan})
    assert "no engine takes the plan-rtx model: tensorrt_rtx: this host has no NVIDIA driver" in message
    cut = triton.refusal("cut", {"1/model.plan": plan.read_bytes()[:3000]})
    assert "model.plan is cut short" in cut
