"""ONNX Runtime on CUDA, in this process and in a real Triton; every answer is compared with the CPU's."""

from __future__ import annotations

import base64
import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as grpcclient
from helpers import Triton, start_server
from onnx import TensorProto, helper, numpy_helper
from unified_backend.cache import Cache
from unified_backend.engines.cuda import Cuda
from unified_backend.engines.device import DeviceRunner
from unified_backend.gpus import driver
from unified_backend.loading import Loaded, describe, load
from unified_backend.variables import CacheSettings

CLOSE = {"rtol": 0.0, "atol": 2e-4}


def network(features: int = 16, side: int | str = 32) -> bytes:
    """Two convolutions, a mean and a matrix product: [N, 3, side, side] -> [N, 10]."""
    generator = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((generator.random(shape, np.float32) - 0.5) / 4, name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [weight("w1", features, 3, 3, 3), weight("w2", features, features, 3, 3), weight("w3", features, 10)],
    )
    return _bytes(graph)


def scaler() -> bytes:
    """[N, 10] -> [N, 10]."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["y", "two"], ["z"])],
        "scaler",
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.array(2, np.float32), "two")],
    )
    return _bytes(graph)


def branching() -> bytes:
    """A graph with a branch, which no CUDA graph takes: y = x if its sum is positive, else -x."""
    branches = {}
    for name, op in (("then_branch", "Identity"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["N", 4])
        branches[name] = helper.make_graph([helper.make_node(op, ["x"], [f"{name}_y"])], name, [], [out])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], **branches),
    ]
    graph = helper.make_graph(
        nodes,
        "branching",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    return _bytes(graph)


def _bytes(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def on_cpu(model: bytes, name: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {name: value})[0])


def images(rows: int, side: int = 32, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random((rows, 3, side, side), np.float32)


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Callable[..., Loaded]]:
    """Load a model as an instance on the first GPU does."""
    cache = Cache.from_settings(CacheSettings(tmp_path / "cache"))
    runners = []

    def made(model: bytes, max_batch_size: int, **parameters: str) -> Loaded:
        folder = tmp_path / "models" / "net" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(model)
        config = {
            "name": "net",
            "max_batch_size": max_batch_size,
            "parameters": {name: {"string_value": value} for name, value in parameters.items()},
        }
        described = describe("net/1", folder, config, cache, True, driver().gpus[0])
        runners.append(load(described, cache))
        return runners[-1]

    yield made
    for one in runners:
        one.runner.close()
    cache.close()


def test_every_batch_size_answers_as_the_cpu_does(loaded: Callable[..., Loaded]) -> None:
    model = loaded(network(), 9, batch_buckets="1,4")
    assert model.engine == "onnxruntime_cuda"
    assert isinstance(model.runner, DeviceRunner)
    assert set(model.runner.buckets) <= {1, 4, 9}
    assert model.runner.buckets[-1] == 9
    assert model.runner.graphs
    for rows in (*range(1, 10), 20):  # more than the largest bucket is run in pieces
        x = images(rows, seed=rows)
        np.testing.assert_allclose(model.runner.run({"x": x}, ["y"])[0], on_cpu(network(), "x", x), **CLOSE)


def test_batches_in_flight_do_not_touch_each_other(loaded: Callable[..., Loaded]) -> None:
    runner = loaded(network(), 8, contexts="3").runner
    assert isinstance(runner, DeviceRunner)
    given = [images(rows, seed=rows) for rows in (3, 8, 1)]
    pending = [runner.submit([{"x": x}]) for x in given]
    for x, batch in zip(given, pending, strict=True):
        np.testing.assert_allclose(batch.wait()["y"], on_cpu(network(), "x", x), **CLOSE)
        batch.release()


def test_parts_of_a_batch_lie_one_below_the_other(loaded: Callable[..., Loaded]) -> None:
    runner = loaded(network(), 8).runner
    assert isinstance(runner, DeviceRunner)
    parts = [images(rows, seed=rows) for rows in (2, 1, 3)]
    batch = runner.submit([{"x": x} for x in parts])
    np.testing.assert_allclose(batch.wait()["y"], on_cpu(network(), "x", np.concatenate(parts)), **CLOSE)
    batch.release()


@pytest.mark.parametrize(
    ("model", "name", "shape"), [(network(side="S"), "x", (2, 3, 40, 40)), (branching(), "x", (1, 4))]
)
def test_what_no_cuda_graph_takes_is_answered_all_the_same(
    loaded: Callable[..., Loaded], model: bytes, name: str, shape: tuple[int, ...]
) -> None:
    one = loaded(model, 4 if len(shape) == 4 else 0)
    assert one.engine == "onnxruntime_cuda"
    for seed in range(3):
        x = np.random.default_rng(seed).random(shape, np.float32) - (0.5 if seed else 0.9)
        np.testing.assert_allclose(one.runner.run({name: x}, ["y"])[0], on_cpu(model, name, x), **CLOSE)


def test_without_tf32_the_answer_is_closer(loaded: Callable[..., Loaded]) -> None:
    x, errors = images(8), {}
    for tf32 in ("0", "1"):
        answer = loaded(network(256), 8, tf32=tf32, tolerance="0.01").runner.run({"x": x}, ["y"])[0]
        errors[tf32] = float(np.abs(answer - on_cpu(network(256), "x", x)).max())
    assert errors["0"] < errors["1"] / 4


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    repository = tmp_path_factory.mktemp("gpu") / "models"
    repository.mkdir()
    with start_server(repository, model_control_mode="explicit") as server:
        yield server


@pytest.mark.parametrize("contexts", ["1", "3"])
def test_clients_with_batches_of_any_size_get_their_own_answers(triton: Triton, contexts: str) -> None:
    contexts_line = f'parameters {{ key: "contexts" value {{ string_value: "{contexts}" }} }}'
    config = f'backend: "unified"\nmax_batch_size: 16\n{contexts_line}'
    with triton.serving(f"clients{contexts}", {"1/model.onnx": network()}, config) as name:
        assert "engine=onnxruntime_cuda" in triton.log_text()

        def ask(number: int) -> None:
            client = grpcclient.InferenceServerClient(triton.grpc_url)
            generator = np.random.default_rng(number)
            for turn in range(40):
                x = images(int(generator.integers(1, 17)), seed=1000 * number + turn)
                value = grpcclient.InferInput("x", list(x.shape), "FP32")
                value.set_data_from_numpy(x)
                answer = client.infer(name, [value]).as_numpy("y")
                np.testing.assert_allclose(answer, on_cpu(network(), "x", x), **CLOSE)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))


ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [ 3, 32, 32 ] }
output { name: "Z" data_type: TYPE_FP32 dims: [ 10 ] }
ensemble_scheduling {
  step { model_name: "FIRST" model_version: -1 input_map { key: "x" value: "X" } output_map { key: "y" value: "Y" } }
  step { model_name: "SECOND" model_version: -1 input_map { key: "y" value: "Y" } output_map { key: "z" value: "Z" } }
}
"""
ON_GPU = """backend: "unified"
max_batch_size: 8
instance_group { kind: KIND_GPU gpus: [ 0 ] }
parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }
parameters { key: "gpu_outputs" value { string_value: "1" } }
"""


def test_an_ensemble_stays_on_the_gpu(triton: Triton) -> None:
    with (
        triton.serving("first", {"1/model.onnx": network()}, ON_GPU) as first,
        triton.serving("second", {"1/model.onnx": scaler()}, ON_GPU) as second,
    ):
        config = ENSEMBLE.replace("FIRST", first).replace("SECOND", second)
        with triton.serving("both", {"1/.keep": b""}, config) as name:
            for rows in (1, 5, 8):
                x = images(rows, seed=rows)
                value = grpcclient.InferInput("X", list(x.shape), "FP32")
                value.set_data_from_numpy(x)
                client = grpcclient.InferenceServerClient(triton.grpc_url)
                answer = client.infer(name, [value]).as_numpy("Z")
                np.testing.assert_allclose(answer, 2 * on_cpu(network(), "x", x), **CLOSE)


def test_cuda_shared_memory_goes_in_and_out(triton: Triton) -> None:
    from cuda.bindings import driver as cuda_driver

    cuda = Cuda(0)
    cuda.enter()
    stream = cuda.stream()
    x = images(4)
    client = grpcclient.InferenceServerClient(triton.grpc_url)
    sizes = {"in": x.nbytes, "out": 4 * 10 * 4}
    # A handle is of a whole block of 2 MiB, which smaller allocations share.
    regions = {name: cuda.memory(2 << 20) for name in sizes}
    cuda.to_device(regions["in"], x, x.nbytes, stream)
    cuda.wait_for_stream(stream)
    for name, address in regions.items():
        _, handle = cuda_driver.cuIpcGetMemHandle(address)
        client.register_cuda_shared_memory(
            name, base64.b64encode(ctypes.string_at(int(handle.getPtr()), 64)), 0, sizes[name]
        )
    with triton.serving("shared", {"1/model.onnx": network()}, ON_GPU) as name:
        value, output = grpcclient.InferInput("x", [4, 3, 32, 32], "FP32"), grpcclient.InferRequestedOutput("y")
        value.set_shared_memory("in", sizes["in"])
        output.set_shared_memory("out", sizes["out"])
        client.infer(name, [value], outputs=[output])
        answer = np.zeros((4, 10), np.float32)
        cuda.to_host(answer, regions["out"], answer.nbytes, stream)
        cuda.wait_for_stream(stream)
    client.unregister_cuda_shared_memory()
    np.testing.assert_allclose(answer, on_cpu(network(), "x", x), **CLOSE)
    for address in regions.values():
        cuda.free(address)


def test_unloading_gives_the_memory_back(triton: Triton) -> None:
    def free() -> int:
        library, free_bytes, total = ctypes.CDLL("libcuda.so.1"), ctypes.c_size_t(), ctypes.c_size_t()
        Cuda(0).enter()
        library.cuMemGetInfo_v2(ctypes.byref(free_bytes), ctypes.byref(total))
        return free_bytes.value

    left = []
    for _ in range(3):
        with triton.serving("memory", {"1/model.onnx": network(64)}, 'backend: "unified"\nmax_batch_size: 64'):
            pass
        left.append(free())
    assert left[-1] > left[0] - 64 * 2**20
