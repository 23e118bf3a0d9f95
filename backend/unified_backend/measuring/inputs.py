"""What requests hold: the user's data, the model's samples, or seeded numbers that the model was seen to answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.errors import MeasurementError, Refused
from unified_backend.measuring.data import read_data
from unified_backend.samples import FixedDims, recipes
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["Inputs", "choose_inputs", "parse_shapes", "signature_of"]

Feeds = Mapping[str, Array]
_DO = "Name a folder with --data: images, or .npz files with an array under each input's name"


@dataclass(frozen=True)
class Inputs:
    """The samples that requests are made of.

    Attributes:
        words: what they are, for a person.
        rows: samples, without the batch dimension where the model has one.
        types: of the inputs, as Triton names them without `TYPE_`.
        batched: the model has a batch dimension.
    """

    words: str
    rows: Sequence[Feeds]
    types: Mapping[str, str] = field(default_factory=dict)
    batched: bool = False

    def feeds(self, batch: int) -> dict[str, Array]:
        """The first request, of so many samples; those of one shape, again from the start where there are too few."""
        rows = self._of_one_shape(batch)
        if not self.batched:
            return dict(rows[0])
        chosen = [rows[number % len(rows)] for number in range(batch)]
        return {name: np.stack([row[name] for row in chosen]) for name in rows[0]}

    def write(self, path: Path, batch: int) -> Path:
        """As perf_analyzer reads them, for requests of so many samples."""
        rows = [
            {name: {"content": {"b64": _base64(array)}, "shape": list(array.shape)} for name, array in row.items()}
            for row in self._of_one_shape(batch)
        ]
        path.write_text(json.dumps({"data": rows}))
        return path

    def _of_one_shape(self, batch: int) -> list[Feeds]:
        def shapes(row: Feeds) -> dict[str, tuple[int, ...]]:
            return {name: array.shape for name, array in row.items()}

        return [row for row in self.rows if batch == 1 or shapes(row) == shapes(self.rows[0])]


def signature_of(config: Mapping[str, Any]) -> Signature:
    """What requests to a model bring, by its completed config; with a first dimension where it takes batches."""
    batched = int(config.get("max_batch_size") or 0) > 0

    def specs(side: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                row["name"],
                str(row["data_type"]).removeprefix("TYPE_"),
                (*([None] if batched else []), *(int(size) if int(size) >= 0 else None for size in row["dims"])),
            )
            for row in config.get(side) or []
            if not row.get("optional")
        )

    return Signature(specs("input"), specs("output"))


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`image:3,224,224` -> input name -> shape without the batch.

    Raises:
        Refused: it is written otherwise.
    """
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        if not name or not all(size.isdecimal() and int(size) > 0 for size in sizes.split(",")):
            raise Refused(f"--shape {text} is not understood", "it has no NAME:SIZE,SIZE", "Write image:3,224,224")
        found[name] = tuple(map(int, sizes.split(",")))
    return found


def choose_inputs(
    config: Mapping[str, Any],
    data: Path | None,
    samples: Sequence[Path],
    shapes: Mapping[str, Sequence[int]],
    answers: Callable[[Feeds, Mapping[str, str]], None],
) -> Inputs:
    """Inputs for a model, which it was seen to answer.

    Args:
        config: the model's, completed.
        data: the user's file or folder; None for the model's samples, or made-up numbers.
        samples: `.npz` files beside the model.
        shapes: of inputs with open dimensions, without the batch.
        answers: sends one request; raises MeasurementError if it is not answered.

    Raises:
        Refused: the data is not there, or does not fit the model; or nothing could be made up that it answers.
    """
    signature = signature_of(config)
    batched = int(config.get("max_batch_size") or 0) > 0
    types = {spec.name: spec.dtype for spec in signature.inputs}
    fixed = _fixed(signature, shapes, batched)
    if data or samples:
        words, rows = read_data(data or samples[0].parent, signature, batched, fixed)
        inputs = Inputs(words if data else f"the model's own samples ({words})", rows, types, batched)
        try:
            answers(inputs.feeds(1), types)
        except MeasurementError as error:
            raise Refused(
                f"{data or samples[0].parent} cannot be used for {config['name']}", error.why, "Give other data"
            ) from None
        return inputs
    return _made_up(config, signature, fixed, answers, types, batched)


def _made_up(
    config: Mapping[str, Any],
    signature: Signature,
    fixed: FixedDims,
    answers: Callable[[Feeds, Mapping[str, str]], None],
    types: Mapping[str, str],
    batched: bool,
) -> Inputs:
    """Seeded numbers as verification draws them: the first recipe that the model answers."""
    why = "it has no inputs"
    for recipe in recipes(signature, fixed, 1 if batched else None):
        feeds = recipe.feeds(signature, fixed, 1 if batched else None)
        try:
            answers(feeds, types)
        except MeasurementError as error:
            why = error.why
            continue
        sizes = ", ".join(f"{name} {list(array.shape[batched:])}" for name, array in feeds.items())
        integers = any(kind.startswith(("INT", "UINT")) for kind in types.values())
        kinds = f"floats in [0, 1), integers in [0, {recipe.bound})" if integers else "floats in [0, 1)"
        words = f"random numbers ({kinds}): {sizes}"
        return Inputs(words, [{name: array[0] if batched else array for name, array in feeds.items()}], types, batched)
    raise Refused(f"no request could be made up that {config['name']} answers", why, _DO)


def _fixed(signature: Signature, shapes: Mapping[str, Sequence[int]], batched: bool) -> dict[str, dict[int, int]]:
    """Input name -> axis -> size, out of `--shape`."""
    specs = {spec.name: spec for spec in signature.inputs}
    found = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise Refused(
                f"--shape names the input {name}", f"the model's inputs are {', '.join(specs)}", "Name one of these"
            )
        own = (specs[name].shape or ())[batched:]
        if len(own) != len(shape) or any(mine not in (None, size) for mine, size in zip(own, shape, strict=True)):
            wanted = [-1 if size is None else size for size in own]
            raise Refused(f"--shape {name}:{','.join(map(str, shape))} does not fit", f"it has {wanted}", "Correct it")
        found[name] = {axis + batched: size for axis, size in enumerate(shape)}
    return found


def _base64(array: Array) -> str:
    """Raw bytes as perf_analyzer takes them; strings each with its length before it."""
    if array.dtype.kind not in "OSU":
        return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    content = b""
    for value in array.ravel():
        one = value if isinstance(value, bytes) else str(value).encode()
        content += len(one).to_bytes(4, "little") + one
    return base64.b64encode(content).decode()
