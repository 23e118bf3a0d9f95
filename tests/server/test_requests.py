"""Requests that meet in one batch or follow one another: each gets its own right answer, or its own error."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from helpers import UNIFIED, Triton, wait_until
from models import parsed
from transports import at_once, over_grpc, over_http, over_shared_memory
from tritonclient.utils import InferenceServerException

Arrays = Mapping[str, np.ndarray]
BATCHINGS = ["loop", "concatenate"]
# Long enough for requests that are sent together to meet in one execution, on a busy machine too.
TOGETHER = "dynamic_batching { max_queue_delay_microseconds: 100000 }\n"

SUM = parsed("g (float[N,A] a, float[N,B] b) => (float[N,A] c) { c = Add (a, b) }").SerializeToString()
LOOKUP = parsed(
    "g (int64[N,1] index) => (float[N,2] row) <float[5,2] table = {0, 1, 10, 11, 20, 21, 30, 31, 40, 41}>"
    "{ rows = Gather (table, index)  row = Flatten (rows) }"
).SerializeToString()
# Outputs that are as large as the input, and one that is not.
LARGE = parsed(
    "g (float[N,W] X) => (float[N,W] doubled, float[N,W] negative, float[N,1] largest)"
    "{ doubled = Add (X, X)  negative = Neg (X)  largest = ReduceMax <axes = [1], keepdims = 1> (X) }"
).SerializeToString()


def batching(kind: str) -> str:
    return f'{UNIFIED}parameters {{ key: "batching" value {{ string_value: "{kind}" }} }}\n'


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def executions(triton: Triton, model: str) -> int:
    [statistics] = triton.client.get_inference_statistics(model)["model_stats"]
    return int(statistics["execution_count"])


def in_few_executions(
    triton: Triton, model: str, requests: Sequence[Arrays]
) -> list[dict[str, np.ndarray] | InferenceServerException]:
    """The answers to requests that meet in fewer executions than there are requests."""
    before = executions(triton, model)
    answers = at_once(triton, model, requests)
    assert executions(triton, model) - before < len(requests), "every request was executed by itself"
    return answers


@pytest.fixture(scope="module", params=BATCHINGS)
def adder(request: pytest.FixtureRequest, triton: Triton) -> Iterator[str]:
    """c = a + b, whose rows may have any two widths as far as Triton knows."""
    ragged = "dims: [ -1 ] allow_ragged_batch: true"
    inputs = "".join(f'input {{ name: "{name}" {ragged} }}\n' for name in "ab")
    with triton.serving("adder", {"1/m.onnx": SUM}, batching(request.param) + inputs + TOGETHER) as model:
        yield model


@pytest.fixture(scope="module", params=BATCHINGS)
def lookup(request: pytest.FixtureRequest, triton: Triton) -> Iterator[str]:
    """Row `index` of a table of five."""
    with triton.serving("lookup", {"1/m.onnx": LOOKUP}, batching(request.param) + TOGETHER) as model:
        yield model


def test_request_of_a_shape_that_the_model_refuses_fails_alone(triton: Triton, adder: str) -> None:
    pairs = [{"a": floats(1 + seed % 2, 3, seed=seed), "b": floats(1 + seed % 2, 3)} for seed in range(6)]
    pairs[2]["b"] = floats(1, 4)
    answers = in_few_executions(triton, adder, pairs)
    assert_invalid(answers.pop(2), "the model does not take this request", "Add")
    del pairs[2]
    for pair, answer in zip(pairs, answers, strict=True):
        assert isinstance(answer, dict), answer
        np.testing.assert_array_equal(answer["c"], pair["a"] + pair["b"])


def test_rows_of_different_widths_in_one_batch_are_answered_each(triton: Triton, adder: str) -> None:
    pairs = [{"a": floats(1, width, seed=width), "b": floats(1, width)} for width in (1, 7, 7, 300, 7, 1, 20, 300)]
    for pair, answer in zip(pairs, in_few_executions(triton, adder, pairs), strict=True):
        assert isinstance(answer, dict), answer
        np.testing.assert_array_equal(answer["c"], pair["a"] + pair["b"])


def test_different_widths_at_once_are_answered_without_ragged_batches(triton: Triton) -> None:
    with triton.serving("widths", {"1/m.onnx": LARGE}, batching("concatenate") + TOGETHER) as model:
        arrays = [floats(1 + seed % 3, 1 + seed % 5, seed=seed) for seed in range(20)]
        for array, answer in zip(arrays, at_once(triton, model, [{"X": array} for array in arrays]), strict=True):
            assert_large(array, answer)


def test_value_out_of_range_fails_alone(triton: Triton, lookup: str) -> None:
    indices = [np.array([[index]]) for index in (4, 0, 7, 1, -9, 3)]
    answers = in_few_executions(triton, lookup, [{"index": index} for index in indices])
    for index, answer in zip(indices, answers, strict=True):
        if abs(index[0, 0]) > 5:
            assert_invalid(answer, "Gather", "out of")
        else:
            assert isinstance(answer, dict), answer
            np.testing.assert_array_equal(answer["row"], [[index[0, 0] * 10, index[0, 0] * 10 + 1]])


def test_batch_of_one_request_with_a_bad_row_is_answered_an_error(triton: Triton, lookup: str) -> None:
    with pytest.raises(InferenceServerException) as refused:
        over_http(triton, lookup, {"index": np.array([[1], [5]])})
    assert_invalid(refused.value, "Gather", status="400")


@pytest.mark.parametrize("kind", BATCHINGS)
def test_full_batch_is_answered_and_one_more_is_refused(triton: Triton, kind: str) -> None:
    with triton.serving("full", {"1/m.onnx": LARGE}, batching(kind) + "max_batch_size: 16\n" + TOGETHER) as model:
        array = floats(16, 4)
        assert_large(array, over_grpc(triton, model, {"X": array}))
        rows = [floats(1, 4, seed=seed) for seed in range(16)]
        for row, answer in zip(rows, in_few_executions(triton, model, [{"X": row} for row in rows]), strict=True):
            assert_large(row, answer)
        [refused] = at_once(triton, model, [{"X": floats(17, 4)}])
        assert_invalid(refused, "must be <= 16")


# From nothing over the bound from which outputs are written in place, 1 MiB, to 12 MiB.
WIDTHS = (1, 1000, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3 << 20)
OUTPUTS = [None, ["doubled"], ["negative", "largest"], ["largest", "doubled"], ["negative"]]


@pytest.mark.parametrize("kind", [*BATCHINGS, "auto"])
def test_large_outputs_of_concurrent_clients_are_never_mixed_up(triton: Triton, kind: str) -> None:
    config = batching(kind) + "max_batch_size: 8\ndynamic_batching { max_queue_delay_microseconds: 5000 }"
    arrays = [floats(1, width, seed=width) for width in WIDTHS] + [floats(3, 1 << 18, seed=1), floats(3, 1000)]
    failures: list[str] = []

    def client(number: int) -> None:
        generator = np.random.default_rng(number)
        with grpcclient.InferenceServerClient(triton.grpc_url) as connection:
            for turn in range(8):
                # Everybody starts with 12 MiB; then sizes, values and outputs come in another order for each.
                array = arrays[5] if turn < 2 else arrays[generator.integers(len(arrays))]
                sent = array + np.float32(number + turn / 16)
                names = OUTPUTS[0] if turn == 0 else OUTPUTS[generator.integers(len(OUTPUTS))]
                tensor = grpcclient.InferInput("X", list(sent.shape), "FP32").set_data_from_numpy(sent)
                asked = None if names is None else [grpcclient.InferRequestedOutput(name) for name in names]
                result = connection.infer(model, [tensor], outputs=asked)
                answer = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
                expected = {name: large(sent)[name] for name in names or ("doubled", "negative", "largest")}
                if answer.keys() != expected.keys():
                    failures.append(f"client {number} turn {turn}: {sorted(answer)}")
                failures.extend(
                    f"client {number} turn {turn}: {name} of {sent.shape}"
                    for name in answer
                    if not np.array_equal(answer[name], expected[name])
                )

    with triton.serving("large", {"1/m.onnx": LARGE}, config) as model, ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    assert failures == []


def test_large_outputs_alternate_in_the_clients_shared_memory(triton: Triton) -> None:
    with triton.serving("slots", {"1/m.onnx": LARGE}, batching("loop")) as model:
        for turn, width in enumerate((3 << 20, 1 << 18, 3 << 20, 5, 1 << 18, 3 << 20)):
            array = floats(1, width, seed=turn)
            assert_large(array, over_shared_memory(triton, model, {"X": array}))


def test_cancelled_requests_disturb_nobody(triton: Triton) -> None:
    chain = " ".join(f"h{turn + 1} = MatMul (h{turn}, w)" for turn in range(30))
    model = parsed(
        f"g (float[N,512] X, float[512,512] w) => (float[N,512] Y) {{ h0 = Identity (X) {chain} Y = Identity (h30) }}"
    )
    del model.graph.input[1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(512, dtype=np.float32), "w"))
    rows = [floats(512, 512, seed=seed) for seed in range(12)]
    answers: dict[int, np.ndarray | InferenceServerException] = {}
    done = threading.Semaphore(0)

    def callback(number: int):
        def take(result, error) -> None:
            answers[number] = error or result.as_numpy("Y")
            done.release()

        return take

    config = UNIFIED + 'max_batch_size: 0 input { name: "X" dims: [ 512, 512 ] }'
    with (
        triton.serving("slow", {"1/m.onnx": model.SerializeToString()}, config) as name,
        grpcclient.InferenceServerClient(triton.grpc_url) as client,
    ):
        calls = []
        for number, row in enumerate(rows):
            tensor = grpcclient.InferInput("X", list(row.shape), "FP32").set_data_from_numpy(row)
            calls.append(client.async_infer(name, [tensor], callback(number)))
        assert done.acquire(timeout=60)
        for call in calls[1::2]:
            call.cancel()
        for _ in rows[1:]:
            assert done.acquire(timeout=60)
        np.testing.assert_array_equal(over_http(triton, name, {"X": rows[0]})["Y"], rows[0])
        skipped = ("unified_request_errors_total", "code=CANCELLED")
        wait_until(lambda: triton.metrics(name).get(skipped, 0) > 0, 10, "a cancelled request that was not executed")
    for number, row in enumerate(rows):
        answer = answers[number]
        if number % 2 and isinstance(answer, InferenceServerException):
            assert "CANCELLED" in str(answer.status())
        else:
            np.testing.assert_array_equal(answer, row)
    assert isinstance(answers[11], InferenceServerException)


def large(array: np.ndarray) -> dict[str, np.ndarray]:
    return {"doubled": array + array, "negative": -array, "largest": array.max(axis=1, keepdims=True)}


def assert_large(array: np.ndarray, answer: dict[str, np.ndarray] | InferenceServerException) -> None:
    assert isinstance(answer, dict), answer
    expected = large(array)
    assert answer.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(answer[name], values, strict=True)


def assert_invalid(answer: object, *parts: str, status: str = "StatusCode.INVALID_ARGUMENT") -> None:
    """The answer is an error that blames the request, with these words."""
    assert isinstance(answer, InferenceServerException), answer
    assert answer.status() == status
    for part in parts:
        assert part in str(answer)
