"""Batches in flight: what the executor of GPUs does with requests, with an engine that NumPy stands in for.

No machine of these tests has a GPU; tests/gpu runs the same executor on one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from unified_backend.engines.device import buckets_up_to
from unified_backend.errors import EngineError
from unified_backend.serving.executor import Executor, Plan
from unified_backend.serving.pipelined import PipelinedExecutor
from unified_backend.tensors import Array, Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", ("N", 2)),), (TensorSpec("y", "FP32", ("N", 2)),))


class Tensor:
    def __init__(self, name: str, array: Array) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array


class Response:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: Any = None) -> None:
        # Triton copies a tensor when it is sent, so what a response holds is what its memory holds now.
        self.outputs = {tensor.name(): tensor.as_numpy().copy() for tensor in output_tensors}
        self.error = error


class TritonError:
    INVALID_ARG, INTERNAL, CANCELLED = "INVALID_ARG", "INTERNAL", "CANCELLED"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class PbUtils:
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    Tensor, InferenceResponse, TritonError = Tensor, Response, TritonError


class Request:
    """A request that keeps what is sent for it."""

    def __init__(self, array: Array | None) -> None:
        self._array = array
        self.sent: list[Response] = []
        self.answered = threading.Event()

    def inputs(self) -> list[Tensor]:
        return [] if self._array is None else [Tensor("x", self._array)]

    def requested_output_names(self) -> list[str]:
        return ["y"]

    def get_response_sender(self) -> Request:
        return self

    def send(self, response: Response, flags: int) -> None:
        assert flags == PbUtils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.sent.append(response)
        self.answered.set()

    def response(self) -> Response:
        assert self.answered.wait(20)
        (only,) = self.sent
        return only


class Doubling:
    """Doubles its input, in memory that the next batch of the same context overwrites; refuses numbers below zero."""

    buckets = (1, 4)
    signature = SIGNATURE

    def __init__(self, contexts: int) -> None:
        self.contexts = contexts
        self.batches: list[int] = []
        self.most = 0
        self.open = threading.Event()
        self.open.set()
        self._free = threading.Semaphore(contexts)
        self._memory = [np.zeros((4, 2), np.float32) for _ in range(contexts)]
        self._in_flight = 0
        self._lock = threading.Lock()

    def submit(self, parts: Sequence[Mapping[str, Array]]) -> Pending:
        joined = np.concatenate([part["x"] for part in parts])
        if (joined < 0).any():
            raise EngineError("the engine failed", "a number is below zero", "Send others")
        self._free.acquire()
        with self._lock:
            memory = self._memory.pop()
            self._in_flight += 1
            self.most = max(self.most, self._in_flight)
            self.batches.append(len(joined))
        memory[: len(joined)] = 2 * joined
        return Pending(self, memory, len(joined))

    def give_back(self, memory: Array) -> None:
        memory[:] = np.nan
        with self._lock:
            self._memory.append(memory)
            self._in_flight -= 1
        self._free.release()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Any = None) -> list[Array]:
        pending = self.submit([feeds])
        answer = pending.wait()["y"].copy()
        pending.release()
        return [answer]


class Pending:
    def __init__(self, runner: Doubling, memory: Array, rows: int) -> None:
        self._runner, self._memory, self._rows = runner, memory, rows

    def wait(self) -> dict[str, Array]:
        assert self._runner.open.wait(20)
        return {"y": self._memory[: self._rows]}

    def release(self) -> None:
        self._runner.give_back(self._memory)


class Served:
    def __init__(self, contexts: int) -> None:
        self.runner, self.sizes, self.errors = Doubling(contexts), Counter[int](), Counter[str]()
        plain = Executor(PbUtils, self.runner, Plan(("y",), 4, True, False), self.sizes, self.errors)
        self.executor = PipelinedExecutor(PbUtils, plain, self.runner)  # type: ignore[arg-type]


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served(contexts=2)
    yield one
    one.runner.open.set()
    one.executor.close()


def request(*rows: float) -> Request:
    return Request(np.array([[row, row] for row in rows], np.float32))


def doubled(one: Request) -> list[float]:
    return list(one.response().outputs["y"][:, 0])


def test_buckets_are_powers_of_two_the_sizes_between_and_the_largest() -> None:
    assert buckets_up_to(64) == (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
    assert buckets_up_to(20) == (1, 2, 4, 8, 12, 16, 20)
    assert buckets_up_to(1) == (1,)
    assert buckets_up_to(8, (3, 64)) == (3, 8)


def test_a_lone_request_on_an_idle_engine_is_answered_at_once(served: Served) -> None:
    (response,) = served.executor.execute([request(1, 2)]) or []
    assert response.outputs["y"].tolist() == [[2, 2], [4, 4]]


def test_requests_are_joined_and_each_gets_its_own_rows(served: Served) -> None:
    requests = [request(1), request(2, 3), request(4)]
    assert served.executor.execute(requests) is None
    assert [doubled(one) for one in requests] == [[2], [4, 6], [8]]
    assert served.runner.batches == [4]
    assert served.sizes == {4: 1}


def test_what_does_not_fit_the_largest_bucket_is_a_batch_of_its_own(served: Served) -> None:
    requests = [request(1, 2, 3), request(4, 5), request(6)]
    served.executor.execute(requests)
    assert [doubled(one) for one in requests] == [[2, 4, 6], [8, 10], [12]]
    assert served.runner.batches == [3, 3]


def test_as_many_batches_are_in_flight_as_there_are_contexts_and_no_more(served: Served) -> None:
    served.runner.open.clear()
    calls = [[request(number), request(number + 0.5)] for number in range(4)]
    # One call is started by each context; two more wait in the queue, so that the fifth would block.
    for call in calls:
        served.executor.execute(call)
    for _ in range(200):
        if len(served.runner.batches) == 2:
            break
        threading.Event().wait(0.01)
    assert served.runner.batches == [2, 2]
    served.runner.open.set()
    answers = [doubled(one) for call in calls for one in call]
    assert answers == [[2 * (number + half)] for number in range(4) for half in (0, 0.5)]
    assert served.runner.most == 2


def test_the_request_that_breaks_a_batch_is_the_only_one_that_fails(served: Served) -> None:
    good, bad = request(1), request(-1)
    served.executor.execute([good, bad])
    assert doubled(good) == [2]
    error = bad.response().error
    assert "a number is below zero" in error.message
    assert served.errors == {"INTERNAL": 1}


def test_a_request_without_its_input_fails_alone(served: Served) -> None:
    good, bad = request(1), Request(None)
    served.executor.execute([bad, good])
    assert doubled(good) == [2]
    assert bad.response().error.code == "INVALID_ARG"


def test_with_one_context_each_call_is_answered_before_the_next() -> None:
    served = Served(contexts=1)
    requests = [request(1), request(-1), request(2, 3)]
    responses = served.executor.execute(requests)
    assert responses is not None
    assert responses[0].outputs["y"].tolist() == [[2, 2]]
    assert "below zero" in responses[1].error.message
    assert responses[2].outputs["y"].tolist() == [[4, 4], [6, 6]]
    assert not any(one.sent for one in requests)
    served.executor.close()


def test_closing_answers_what_is_in_flight(served: Served) -> None:
    requests = [request(1), request(2)]
    served.executor.execute(requests)
    closing = threading.Thread(target=served.executor.close)
    closing.start()
    assert [doubled(one) for one in requests] == [[2], [4]]
    closing.join(20)
    assert not closing.is_alive()
    served.executor = Served(contexts=1).executor  # closed once already
