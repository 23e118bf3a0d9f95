"""Served answers against ONNX Runtime's own, on real networks: the same bits, whatever carries them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers import Triton
from models import LIGHT, OCR, answers_of, magika, session
from transports import TRANSPORTS, answered_together

_AT_ONCE = 12
# In a batch a kernel may sum in another order; relative to the largest value of the answer alone.
_ROUNDING = 1e-5


def images(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Floats in [-1, 1), [batch, 3, height, width]."""
    return np.random.default_rng(seed).random((batch, 3, height, width), np.float32) * 2 - 1


def contents(batch: int, seed: int = 0) -> np.ndarray:
    """What magika reads of a file: bytes, and 256 where there is none, [batch, 2048]."""
    return np.random.default_rng(seed).integers(0, 257, (batch, 2048), np.int32)


# The file; its input from batch size and seed; inputs of other batch and image sizes.
Sample = Callable[[int, int], np.ndarray]
DYNAMIC: dict[str, tuple[Path, Sample, list[np.ndarray]]] = {
    "det": (OCR["det"], lambda batch, seed: images(batch, 64, 96, seed), [images(2, 96, 64), images(1, 320, 256)]),
    "cls": (OCR["cls"], lambda batch, seed: images(batch, 48, 192, seed), [images(5, 48, 96), images(1, 48, 320)]),
    "rec": (OCR["rec"], lambda batch, seed: images(batch, 48, 96, seed), [images(3, 48, 160), images(1, 48, 320)]),
    "magika": (magika(), contents, [contents(7), contents(32)]),
}


@contextmanager
def served(triton: Triton, name: str, model: Path, config: str | None = None) -> Iterator[str]:
    """The name of a directory with the model in it, under a file name that tells nothing; loaded, then gone."""
    directory = f"{name}.unified"
    triton.add_model(directory, {"1/weights": model}, config)
    triton.load(directory)
    try:
        yield directory
    finally:
        triton.client.unload_model(directory)
        shutil.rmtree(triton.repository / directory)


@pytest.fixture
def no_engine_kept(triton: Triton) -> Iterator[None]:
    """Engines that the test made do not stay in the cache: these weigh up to half a gigabyte."""
    engines = triton.repository.parent / "cache/engine"
    before = set(engines.glob("*/*"))
    yield
    for entry in set(engines.glob("*/*")) - before:
        shutil.rmtree(entry)


def assert_same_bits(
    triton: Triton, name: str, reference: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]
) -> None:
    expected = answers_of(reference, inputs)
    for transport, ask in TRANSPORTS.items():
        answer = ask(triton, name, inputs)
        assert answer.keys() == expected.keys()
        for output, array in expected.items():
            np.testing.assert_array_equal(answer[output], array, strict=True, err_msg=f"{output} over {transport}")


@pytest.mark.usefixtures("no_engine_kept")
@pytest.mark.parametrize("name", LIGHT)
def test_classifier_of_fixed_shape_answers_the_same_bits(triton: Triton, name: str) -> None:
    reference = session(LIGHT[name])
    [tensor] = reference.get_inputs()
    with served(triton, name, LIGHT[name]) as directory:
        assert_same_bits(triton, directory, reference, {tensor.name: images(1, 224, 224)})


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_model_answers_the_same_bits_at_every_size(triton: Triton, name: str) -> None:
    model, sample, others = DYNAMIC[name]
    reference = session(model)
    [tensor] = reference.get_inputs()
    with served(triton, name, model) as directory:
        for array in (sample(1, 0), sample(4, 1), *others):
            assert_same_bits(triton, directory, reference, {tensor.name: array})


@pytest.mark.parametrize("name", DYNAMIC)
def test_requests_joined_into_one_batch_answer_as_alone(triton: Triton, name: str) -> None:
    model, sample, _ = DYNAMIC[name]
    reference = session(model)
    [tensor] = reference.get_inputs()
    requests = [{tensor.name: sample(1 + seed % 2, seed)} for seed in range(_AT_ONCE)]
    config = 'parameters { key: "batching" value { string_value: "concatenate" } }'
    with served(triton, f"{name}_joined", model, config) as directory:
        answers = answered_together(triton, directory, requests)
    for request, answer in zip(requests, answers, strict=True):
        assert isinstance(answer, dict), answer
        for output, array in answers_of(reference, request).items():
            assert answer[output].shape == array.shape
            assert np.abs(answer[output] - array).max() <= _ROUNDING * np.abs(array).max(), output
