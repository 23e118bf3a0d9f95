"""Runs the source framework on samples, and writes down what it answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unified_backend.errors import ConversionError
from unified_backend.samples import from_file, recipes
from unified_backend.tensors import Array, Signature, TensorSpec
from unified_backend.toolchains.workers.messages import first_line

__all__ = ["Answered", "Answers", "answers", "signature_of", "write"]

_BATCHES = (1, 3)
_TO_NCHW = (0, 3, 1, 2)


class Opened(Protocol):
    """A source in its own framework: what it knows of its inputs and outputs without a run, and how it is run.

    Attributes:
        words: strings that the model knows, to try it with.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def run(self) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """The framework's own answers to feeds under public names."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """One sample and the framework's answers, under public names; `batch` is None where there is no batch dimension."""

    batch: int | None
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Answers:
    """All samples and what was seen on the way.

    Attributes:
        notes: for the user.
        unsteady: outputs that differ when the framework runs twice on the same input.
    """

    samples: list[Answered]
    notes: list[str]
    unsteady: list[str]


def signature_of(job: Mapping[str, Any], opened: Opened) -> Signature:
    """What the job says of the inputs, completed by what the framework knows; the outputs are the framework's."""
    known = {spec.name: spec for spec in opened.inputs}
    inputs = []
    for row in job["inputs"]:
        spec = known.get(row["name"])
        shape = row["shape"] if row["shape"] is not None or spec is None else spec.shape
        dtype = row["dtype"] if spec is None else spec.dtype
        inputs.append(TensorSpec(row["name"], dtype, None if shape is None else tuple(shape)))
    return Signature(tuple(inputs), opened.outputs)


def answers(job: Mapping[str, Any], opened: Opened) -> Answers:
    """The framework's answers to the user's samples, or else to seeded ones.

    Seeded inputs are at batch 1 and 3 where every input has an open first dimension.

    Raises:
        ConfigError: a sample of the user's does not fit the model.
        ConversionError: the framework runs on none.
    """
    signature = signature_of(job, opened)
    shapes = [spec.shape for spec in signature.inputs]
    batched = bool(shapes) and all(shape and not isinstance(shape[0], int) for shape in shapes)
    notes: list[str] = []
    if job.get("samples"):
        found = [_user_sample(Path(path), signature, batched, opened) for path in job["samples"]]
    else:
        found, notes = _seeded(job, signature, batched, opened)
    again = opened.run(found[0].inputs)
    unsteady = [name for name, array in found[0].outputs.items() if not _same(array, again[name])]
    return Answers(found, notes, unsteady)


def write(found: Sequence[Answered], folder: Path, nchw: Sequence[str]) -> list[dict[str, Any]]:
    """The samples as `.npz` files without pickle, and what is in them.

    Args:
        nchw: inputs and outputs of the exported model that have their channels first, and the source's have not.
    """
    rows = []
    for number, sample in enumerate(found):
        row: dict[str, Any] = {"batch": sample.batch, "file": f"sample-{number}.npz", "inputs": {}, "outputs": {}}
        arrays = {}
        for side in ("inputs", "outputs"):
            for index, (name, array) in enumerate(getattr(sample, side).items()):
                key = f"{side[0]}{index}"
                row[side][name] = key
                arrays[key] = _plain(array.transpose(_TO_NCHW) if name in nchw else array)
        np.savez(folder / row["file"], **arrays)
        rows.append(row)
    return rows


def _seeded(
    job: Mapping[str, Any], signature: Signature, batched: bool, opened: Opened
) -> tuple[list[Answered], list[str]]:
    fixed = {name: {int(axis): size for axis, size in axes.items()} for name, axes in job.get("fixed", {}).items()}
    refusal = ""
    for recipe in recipes(signature, fixed, 1 if batched else None):
        found: list[Answered] = []
        for seed, batch in enumerate(_BATCHES if batched else (None,)):
            feeds = recipe.feeds(signature, fixed, batch, seed)
            feeds = {name: _with_words(array, opened.words, seed) for name, array in feeds.items()}
            try:
                found.append(Answered(batch, feeds, opened.run(feeds)))
            except Exception as error:  # noqa: BLE001 - TensorFlow raises whatever its own code trips over
                refusal = refusal or first_line(error)
                if found:
                    return found, [f"it runs at batch 1 and not at batch {batch}: {first_line(error)}"]
                break
        else:
            return found, []
    raise ConversionError(
        "the source framework answers no sample input",
        refusal or "the model has no input",
        "Put inputs that it takes into samples/NAME.npz beside the version folders",
    )


def _user_sample(path: Path, signature: Signature, batched: bool, opened: Opened) -> Answered:
    feeds = from_file(path, signature)
    try:
        outputs = opened.run(feeds)
    except Exception as error:
        raise ConversionError(
            f"the source framework does not run on the sample {path.name}", first_line(error), "Correct the sample"
        ) from error
    return Answered(len(next(iter(feeds.values()))) if batched else None, feeds, outputs)


def _with_words(array: Array, words: Sequence[str], seed: int) -> Array:
    """Half of the strings, in turn, out of the model's own vocabulary."""
    if array.dtype != object or not words:
        return array
    chosen = np.random.default_rng(seed).choice(np.asarray(words, object), array.shape)
    odd = np.arange(array.size).reshape(array.shape) % 2 == 1
    return np.where(odd, array, chosen)


def _same(one: Array, other: Array) -> bool:
    if one.dtype.kind == "f":
        return one.shape == other.shape and np.array_equal(one, other, equal_nan=True)
    return np.array_equal(one, other)


def _plain(array: Array) -> Array:
    """Strings as bytes, which NumPy writes without pickle."""
    if array.dtype != object:
        return array
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    return np.array(texts, np.bytes_).reshape(array.shape)
