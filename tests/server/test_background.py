"""`build: background`: a model is served at once, and by the better engine when that is built, with no request lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
import tritonclient.http as httpclient
from helpers import UNIFIED, Triton, doubling_onnx, infer, start_server, wait_until
from models import parsed
from slow_engine import environment

_BUILD_SECONDS = 4.0
BACKGROUND = UNIFIED + 'parameters { key: "build" value { string_value: "background" } }\n'
TWO = "instance_group { count: 2 kind: KIND_CPU }\n"
SWAPS = ("unified_engine_swaps_total", "new=slow", "old=onnxruntime")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server whose best engine takes long to build."""
    folder = tmp_path_factory.mktemp("background")
    (folder / "models").mkdir()
    variables = {"SLOW_ENGINE_SECONDS": str(_BUILD_SECONDS), "SLOW_ENGINE_LOG": str(folder / "builds.log")}
    with start_server(folder / "models", variables, model_control_mode="explicit") as server:
        yield server


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The config of a model in an environment that has the engine."""
    return BACKGROUND + environment(tmp_path_factory.mktemp("environment"))


class Client(threading.Thread):
    """Asks a doubling model without pause until it is told to stop; what was not answered rightly is in `wrong`."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        super().__init__()
        self._url, self._model, self._random = url, model, np.random.default_rng(seed)
        self.right, self.wrong, self.stop = 0, list[str](), threading.Event()

    def run(self) -> None:
        with httpclient.InferenceServerClient(self._url) as client:
            while not self.stop.is_set():
                x = self._random.random((int(self._random.integers(1, 5)), 4), np.float32)
                try:
                    y = infer(client, self._model, {"X": x})["Y"]
                except Exception as error:  # noqa: BLE001 - whatever it is, the request was lost
                    self.wrong.append(repr(error))
                    continue
                if np.array_equal(y, x + x):
                    self.right += 1
                else:
                    self.wrong.append(f"{x} -> {y}")


@contextmanager
def traffic(url: str, model: str, clients: int = 3) -> Iterator[list[Client]]:
    """Clients that ask while the block runs."""
    threads = [Client(url, model, seed) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.stop.set()
        for thread in threads:
            thread.join()


def answering(triton: Triton, model: str) -> dict[str, float]:
    """Engine -> instances that it answers for."""
    found = {key[1]: value for key, value in triton.metrics(model).items() if key[0] == "unified_engine_info"}
    return {label.removeprefix("engine="): value for label, value in found.items() if value}


def builds(triton: Triton, model: str) -> list[str]:
    log = triton.repository.parent / "builds.log"
    return [line for line in log.read_text().splitlines() if line.startswith(f"{model}/")] if log.exists() else []


def test_the_better_engine_takes_over_with_no_request_lost(slow: Triton, background: str) -> None:
    with slow.serving("net", {"1/m.onnx": doubling_onnx()}, background + TWO) as model:
        assert answering(slow, model) == {"onnxruntime": 2}  # ready, and not built yet
        with traffic(slow.url, model) as clients:
            wait_until(lambda: slow.metrics(model).get(SWAPS) == 2, 30, "both instances to swap")
            before = sum(client.right for client in clients)
            wait_until(lambda: sum(client.right for client in clients) > before + 100, 30, "answers after the swap")
        assert [client.wrong for client in clients] == [[], [], []]
        assert before > 100
        assert answering(slow, model) == {"slow": 2}
        (built,) = builds(slow, model)  # one for both instances, and not in the way of those who serve
        assert built.endswith("nice=10")
        slow.load(model)  # nothing has changed: Triton keeps what it has
        slow.unload(model)
        slow.load(model)
        assert answering(slow, model) == {"slow": 2}  # it is in the cache, so that there is nothing to wait for
        assert SWAPS not in slow.metrics(model)
        assert len(builds(slow, model)) == 1
    log = slow.log_text().replace('\\"', '"')
    assert log.count(f"swapped model={model}/1 from=onnxruntime to=slow") == 2
    assert f'rung model={model}/1 engine=slow taken=no reason="it is not in the cache' in log
    assert f'rung model={model}/1 engine=onnxruntime taken=yes reason="first usable rung"' in log


def test_a_build_that_fails_leaves_the_model_where_it_is_and_says_why_once(slow: Triton, background: str) -> None:
    with slow.serving("refused", {"1/m.onnx": scaling()}, background) as model:
        failed = ("unified_engine_build_failures_total", "engine=slow", "reason=it does not like the model")
        wait_until(lambda: slow.metrics(model).get(failed) == 1, 30, "the failure in the metrics")
        assert answering(slow, model) == {"onnxruntime": 1}
        assert slow.infer(model, {"X": np.ones((1, 4), np.float32)})["Y"].tolist() == [[3, 3, 3, 3]]
        line = f"background build failed model={model}/1 engine=slow serving=onnxruntime"
        assert slow.log_text().count(line) == 1


def test_a_model_unloaded_while_it_is_built_goes_at_once_and_loads_again(slow: Triton, background: str) -> None:
    with slow.serving("going", {"1/m.onnx": scaling(4)}, background) as model:
        wait_until(lambda: bool(builds(slow, model)), 30, "the build to begin")
        (child,) = (psutil.Process(int(line.split()[1].removeprefix("pid="))) for line in builds(slow, model))
        slow.unload(model)
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30, "its child to end")
        assert not any((slow.repository.parent / "cache/making").glob("*"))
        slow.load(model)
        wait_until(lambda: answering(slow, model) == {"slow": 1}, 30, "the engine to be built after all")
        assert slow.infer(model, {"X": np.ones((1, 4), np.float32)})["Y"].tolist() == [[4, 4, 4, 4]]


def test_a_rung_that_is_named_is_built_before_the_model_is_ready(slow: Triton, background: str) -> None:
    named = 'parameters { key: "engine" value { string_value: "slow" } }\n'
    began = time.monotonic()
    with slow.serving("named", {"1/m.onnx": scaling(5)}, background + named) as model:
        assert time.monotonic() - began > _BUILD_SECONDS
        assert answering(slow, model) == {"slow": 1}


def scaling(factor: int = 3) -> bytes:
    """ONNX: Y = factor X, [N, 4]."""
    return parsed(
        f"g (float[N,4] X) => (float[N,4] Y) <float[1] w = {{{factor}}}> {{ Y = Mul (X, w) }}"
    ).SerializeToString()
