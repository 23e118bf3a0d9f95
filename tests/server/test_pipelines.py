"""Pipelines as Triton ensembles and as fused models, in the real server: the same answers from both."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import Triton, start_server
from pipelines import write_pipeline
from transports import TRANSPORTS
from tritonclient.utils import InferenceServerException
from unified_backend.ensembles.definition import read_definition
from unified_backend.ensembles.members import wired
from unified_backend.ensembles.writing import write_ensemble, write_fused
from unified_backend.loading import open_cache

FORMS = ("sums", "sums_fused")
ASKS = {name: TRANSPORTS[name] for name in ("http", "grpc")}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server with the pipeline in both forms."""
    folder = tmp_path_factory.mktemp("pipeline")
    repository = folder / "models"
    path = write_pipeline(folder)
    with open_cache() as cache:
        write_ensemble(wired(read_definition(path), repository, cache), repository, replace=False)
        path.write_text(path.read_text().replace("name: sums", "name: sums_fused", 1))
        write_fused(wired(read_definition(path), repository, cache), repository, replace=False)
    with start_server(repository) as server:
        yield server


def expected(*samples: int) -> list[str]:
    return [f"{2 * at}+{2 * at + 1}={4 * at + 1}" for sample in samples for at in range(sample)]


def asked(ask, served, model, *samples):
    found = ask(served, model, {"n": np.array(samples, np.int32)[:, None]})
    return [text.decode() for text in found["text"][:, 0]], found["count"][:, 0].tolist()


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("model", FORMS)
@pytest.mark.parametrize("items", [1, 3, 0, 16])
def test_a_sample_with_any_number_of_items(served, ask, model, items):
    assert asked(ask, served, model, items) == (expected(items), [items])


@pytest.mark.parametrize("model", FORMS)
def test_a_sample_that_a_stage_refuses_is_its_own_error(served, model):
    with pytest.raises(InferenceServerException, match=r"n is negative \(make.py:8\)") as caught:
        asked(ASKS["grpc"], served, model, -1)
    assert "INVALID_ARGUMENT" in caught.value.status()


def test_more_items_than_a_model_takes_at_once(served):
    """Triton hands them on as one batch; the fused model cuts them."""
    with pytest.raises(InferenceServerException, match="sums_make made 17 items: the pipeline's max_items is 16"):
        asked(ASKS["grpc"], served, "sums", 17)
    assert asked(ASKS["grpc"], served, "sums_fused", 40) == (expected(40), [40])


def test_samples_of_one_request_are_put_back_together(served):
    assert asked(ASKS["http"], served, "sums_fused", 2, 0, 3) == (expected(2, 0, 3), [2, 0, 3])
    with pytest.raises(InferenceServerException, match=r"sample 1 of 3: make.py refused the input"):
        asked(ASKS["http"], served, "sums_fused", 2, -1, 3)


@pytest.mark.parametrize("model", FORMS)
def test_many_requests_at_once_get_their_own_items_back(served, model):
    numbers = [number % 12 - 1 for number in range(240)]

    def answer(number):
        try:
            return asked(ASKS["grpc"], served, model, number)
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(answer, numbers))
    for number, found in zip(numbers, answers, strict=True):
        if number < 0:
            assert "n is negative" in found
        else:
            assert found == (expected(number), [number])
