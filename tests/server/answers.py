"""What a source framework answered when a model was converted, and whether a server answers the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from helpers import Triton
from unified_backend.cache import Cache
from unified_backend.verification import Sample, compare, read_samples

__all__ = ["assert_answers", "framework_samples"]


def framework_samples(root: Path, label: str) -> list[Sample]:
    """What the framework answered, as the conversion's entry has it."""
    store = Cache(root).store
    (use,) = [use for use in store.usage.uses() if use.label == label]
    (entry,) = [
        entry for entry in store.entries() if entry.digest in use.entries and entry.manifest.key.kind == "conversion"
    ]
    return read_samples(entry.path, entry.manifest.facts["samples"])


def assert_answers(server: Triton, model: str, expected: Sequence[Sample], max_batch_size: int = 32) -> None:
    """The server's answers are within the tolerance of each output's type.

    Args:
        max_batch_size: that the model should have if the framework takes a batch.
    """
    config = server.config(model)
    types = {row["name"]: row["data_type"].removeprefix("TYPE_") for row in config["output"]}
    assert expected
    for sample in expected:
        # Triton has no tensors without dimensions: a scalar is served as [1].
        answers = server.infer(model, {name: np.atleast_1d(array) for name, array in sample.feeds.items()})
        assert set(answers) == set(sample.expected)
        for name, array in sample.expected.items():
            # Nor rows without: one value a row is served as [1] a row.
            answer = answers[name][..., 0] if answers[name].ndim == array.ndim + 1 > 1 else answers[name]
            row = compare(name, sample.batch, types[name], np.atleast_1d(array), answer)
            assert row.passed, row
    if expected[-1].batch == 3 and all(array.shape[:1] == (3,) for array in expected[-1].expected.values()):
        assert config["max_batch_size"] == max_batch_size, "the framework takes a batch, and so it is served"
