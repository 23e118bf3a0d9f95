"""Every element type that Triton and ONNX share goes through a server bit by bit, alone and in a batch."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import Triton
from models import identity, parsed
from transports import TRANSPORTS, Ask, answered_together, over_grpc, over_http
from tritonclient.utils import InferenceServerException

_ROWS = 4
# ONNX's text form -> NumPy; strings and bfloat16, which NumPy has not, are models of their own beside these.
NUMBERS = {
    **{name: np.dtype(name) for name in ("bool", "int8", "int16", "int32", "int64")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64", "float16")},
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
}
TEXTS = ["", "plain", "Grüße, 世界 🎉", "a\0b", " \n", "\ufeff", "z" * 70_000, "%s{}"]
BF16 = np.dtype(ml_dtypes.bfloat16)
BATCHINGS = ["loop", "concatenate"]


def bits(dtype: np.dtype, rows: int, seed: int) -> np.ndarray:
    """[rows, 3] of any bit patterns: not-a-numbers, infinities and the smallest numbers are among them."""
    generator = np.random.default_rng(seed)
    if dtype == np.bool_:
        return generator.integers(0, 2, (rows, 3)).astype(bool)
    array = np.frombuffer(generator.bytes(rows * 3 * dtype.itemsize), dtype).reshape(rows, 3).copy()
    if dtype.kind in "iu":
        array[0] = [np.iinfo(dtype).min, np.iinfo(dtype).max, 0]
    else:
        array[0] = [np.nan, -np.inf, -0.0]
        array[1] = np.array([1, 2, 3], f"u{dtype.itemsize}").view(dtype)
    return array


def texts(rows: int, seed: int) -> np.ndarray:
    """[rows, 3] of UTF-8."""
    drawn = np.random.default_rng(seed).choice(len(TEXTS), (rows, 3))
    array = np.empty((rows, 3), object)
    array.flat = [TEXTS[index].encode() for index in drawn.flat]
    return array


def several(elements: dict[str, str]) -> onnx.ModelProto:
    """One input and one output, its identity, for each name and element type."""
    inputs = ", ".join(f"{kind}[N, 3] {name}_in" for name, kind in elements.items())
    outputs = ", ".join(f"{kind}[N, 3] {name}_out" for name, kind in elements.items())
    nodes = " ".join(f"{name}_out = Identity ({name}_in)" for name in elements)
    return parsed(f"g ({inputs}) => ({outputs}) {{ {nodes} }}")


def config(batching: str) -> str:
    """Requests wait for each other long enough to share an execution."""
    return f"""
    parameters {{ key: "batching" value {{ string_value: "{batching}" }} }}
    dynamic_batching {{ max_queue_delay_microseconds: 200000 }}
    max_batch_size: {_ROWS * 3}
    """


@pytest.fixture(scope="module", params=BATCHINGS)
def batching(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def numbers(triton: Triton, batching: str) -> Iterator[str]:
    """A model with an identity of each numeric type."""
    yield from _loaded(triton, f"numbers_{batching}", several({name: name for name in NUMBERS}), config(batching))


@pytest.fixture(scope="module")
def halves(triton: Triton, batching: str) -> Iterator[str]:
    """A model with bfloat16 beside another type."""
    yield from _loaded(triton, f"halves_{batching}", several({"half": "bfloat16", "whole": "float"}), config(batching))


@pytest.fixture(scope="module")
def strings(triton: Triton, batching: str) -> Iterator[str]:
    """The identity of strings."""
    yield from _loaded(triton, f"strings_{batching}", identity("string"), config(batching))


def _loaded(triton: Triton, name: str, model: onnx.ModelProto, config: str) -> Iterator[str]:
    directory = f"{name}.unified"
    triton.add_model(directory, {"1/weights": model.SerializeToString()}, config)
    triton.load(directory)
    yield directory
    triton.client.unload_model(directory)


def number_inputs(rows: int, seed: int) -> dict[str, np.ndarray]:
    return {f"{name}_in": bits(dtype, rows, seed) for name, dtype in NUMBERS.items()}


def half_inputs(rows: int, seed: int) -> dict[str, np.ndarray]:
    return {"half_in": bits(BF16, rows, seed), "whole_in": bits(np.dtype(np.float32), rows, seed)}


def assert_came_back(answer: object, inputs: dict[str, np.ndarray]) -> None:
    assert isinstance(answer, dict), answer
    assert answer.keys() == {name.replace("_in", "_out") for name in inputs}
    for name, sent in inputs.items():
        back = answer[name.replace("_in", "_out")]
        assert (back.dtype, back.shape) == (sent.dtype, sent.shape)
        assert back.tobytes() == sent.tobytes(), name


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_number_of_every_type_comes_back_bit_by_bit(triton: Triton, numbers: str, transport: str) -> None:
    inputs = number_inputs(_ROWS, seed=1)
    assert_came_back(TRANSPORTS[transport](triton, numbers, inputs), inputs)


def test_numbers_of_every_type_come_back_from_a_shared_batch(triton: Triton, numbers: str) -> None:
    requests = [number_inputs(rows, seed=rows) for rows in (2, 3, 4)]
    for inputs, answer in zip(requests, answered_together(triton, numbers, requests), strict=True):
        assert_came_back(answer, inputs)


@pytest.mark.parametrize("ask", [over_http, over_grpc])
def test_bfloat16_comes_back_bit_by_bit_beside_another_type(triton: Triton, halves: str, ask: Ask) -> None:
    inputs = half_inputs(_ROWS, seed=1)
    assert_came_back(ask(triton, halves, inputs), inputs)


def test_bfloat16_comes_back_from_a_shared_batch(triton: Triton, halves: str) -> None:
    requests = [half_inputs(rows, seed=rows) for rows in (2, 3, 4)]
    for inputs, answer in zip(requests, answered_together(triton, halves, requests), strict=True):
        assert_came_back(answer, inputs)


@pytest.mark.parametrize("ask", [over_http, over_grpc])
def test_text_comes_back_whatever_its_alphabet_and_length(triton: Triton, strings: str, ask: Ask) -> None:
    sent = np.array([text.encode() for text in [*TEXTS, "end"]], object).reshape(-1, 3)
    assert ask(triton, strings, {"X": sent})["Y"].tolist() == sent.tolist()


def test_text_comes_back_from_a_shared_batch(triton: Triton, strings: str) -> None:
    requests = [{"X": texts(rows, seed=rows)} for rows in (2, 3, 4)]
    for inputs, answer in zip(requests, answered_together(triton, strings, requests), strict=True):
        assert isinstance(answer, dict), answer
        assert answer["Y"].tolist() == inputs["X"].tolist()


def test_text_that_is_not_utf8_fails_its_own_request_only(triton: Triton, strings: str) -> None:
    requests = [{"X": texts(2, seed)} for seed in range(4)]
    requests[2]["X"][1, 1] = b"caf\xe9"
    answers = answered_together(triton, strings, requests)
    refusal = answers.pop(2)
    assert isinstance(refusal, InferenceServerException)
    assert refusal.status() == "StatusCode.INVALID_ARGUMENT"
    assert 'input "X" is not UTF-8' in refusal.message()
    for inputs, answer in zip([requests[0], requests[1], requests[3]], answers, strict=True):
        assert isinstance(answer, dict), answer
        assert answer["Y"].tolist() == inputs["X"].tolist()


@pytest.mark.parametrize("ask", [over_http, over_grpc])
@pytest.mark.parametrize("wanted", [["float_out"], ["uint8_out", "bool_out"]])
def test_only_the_outputs_asked_for_come_back(triton: Triton, numbers: str, ask: Ask, wanted: list[str]) -> None:
    inputs = number_inputs(_ROWS, seed=1)
    answer = ask(triton, numbers, inputs, wanted)
    assert_came_back(answer, {name.replace("_out", "_in"): inputs[name.replace("_out", "_in")] for name in wanted})


def test_requests_of_one_batch_may_ask_for_different_outputs(triton: Triton, numbers: str) -> None:
    requests = [number_inputs(rows, seed=rows) for rows in (2, 3, 4)]
    wanted = [["int64_out"], None, ["float_out", "double_out"]]
    answers = answered_together(triton, numbers, requests, wanted=wanted)
    for inputs, names, answer in zip(requests, wanted, answers, strict=True):
        sent = [name.replace("_out", "_in") for name in names or []] or list(inputs)
        assert_came_back(answer, {name: inputs[name] for name in sent})


@pytest.mark.parametrize("elements", ["float8e4m3fn", "int4"])
def test_type_that_triton_has_not_is_refused_by_name(triton: Triton, elements: str) -> None:
    model = parsed(f"g ({elements}[3] X) => (float[3] Y) {{ Y = Cast <to = 1> (X) }}", opset=21, ir_version=10)
    directory = f"of_{elements}.unified"
    triton.add_model(directory, {"1/weights": model.SerializeToString()})
    with pytest.raises(
        InferenceServerException, match=f"input X cannot be served: Triton has no type for .*{elements}"
    ):
        triton.load(directory)
