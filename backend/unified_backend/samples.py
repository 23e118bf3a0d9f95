"""What a model is tried with: the user's samples, or seeded inputs for its signature."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from unified_backend.errors import ConfigError
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["FixedDims", "Recipe", "arrays_of", "fitting", "from_file", "recipes"]

FixedDims = Mapping[str, Mapping[int, int]]

# Tried in this order for dimensions that only a request fixes: image nets want multiples of 32, line recognisers a
# height of 48, audio nets a window, transformers a short sequence; some graphs take only 1.
_FREE_DIMENSIONS = (64, 48, 224, 16, 8, 320, 640, 1, 2)
# Upper bounds of sample integers: below 100 is inside most vocabularies, 0 and 1 inside every one. The wide range comes
# first: inputs of 0 and 1 alone make ill-conditioned sums (magika: 3e-3 between batch sizes, against 1e-7).
_INTEGER_BOUNDS = (100, 2)

_DO = "Save it with numpy.savez(path, **{input name: array}), without arrays of Python objects"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How samples are made that the model takes.

    Attributes:
        free: size of the dimensions that neither the model nor the config fixes.
        bound: integers are drawn from [0, bound).
    """

    free: int
    bound: int

    def feeds(self, signature: Signature, fixed: FixedDims, batch: int | None, seed: int = 0) -> dict[str, Array]:
        """One array for each input: floats in [0, 1), integers in [0, bound), strings of digits.

        Args:
            signature: whose inputs.
            fixed: input name -> axis -> size, from the config.
            batch: size of the first dimension; None leaves it as any other.
            seed: of the random generator.
        """
        generator = np.random.default_rng(seed)
        shapes = self._shapes(signature, fixed, batch)
        return {spec.name: self._sample(spec, shapes[spec.name], generator) for spec in signature.inputs}

    def _shapes(self, signature: Signature, fixed: FixedDims, batch: int | None) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for spec in signature.inputs:
            own = fixed.get(spec.name, {})
            sizes = enumerate(spec.shape or ())
            shape = [own.get(axis, size if isinstance(size, int) else self.free) for axis, size in sizes]
            shapes[spec.name] = tuple(shape if batch is None else [batch, *shape[1:]])
        return shapes

    def _sample(self, spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
        if spec.dtype == "STRING":
            return generator.integers(0, 10, shape).astype(str).astype(object)
        if spec.dtype == "BF16":
            return (generator.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        if spec.dtype.startswith("FP"):
            return generator.random(shape, np.float32).astype(spec.numpy)
        return generator.integers(0, 2 if spec.dtype == "BOOL" else self.bound, shape).astype(spec.numpy)


def recipes(signature: Signature, fixed: FixedDims, batch: int | None) -> Iterator[Recipe]:
    """Recipes worth trying, the likeliest first; those that would give the same samples are left out."""
    shapes = []
    for free in _FREE_DIMENSIONS:
        tried = Recipe(free, 2)._shapes(signature, fixed, batch)
        if tried not in shapes:
            shapes.append(tried)
            integers = any(spec.dtype.startswith(("INT", "UINT")) for spec in signature.inputs)
            yield from (Recipe(free, bound) for bound in (_INTEGER_BOUNDS if integers else _INTEGER_BOUNDS[:1]))


def arrays_of(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file, by name.

    Raises:
        ConfigError: it is damaged, or holds more than arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        why = "it holds Python objects" if "pickle" in why else why
        raise ConfigError(f"the sample {path.name} cannot be read", why, _DO) from None


def from_file(path: Path, signature: Signature) -> dict[str, Array]:
    """The user's inputs in an `.npz` file: one array for each input, under its name.

    Returns:
        arrays of the inputs' types; strings as objects.

    Raises:
        ConfigError: the file is damaged, lacks an input, or has one of another type or shape.
    """
    names = ", ".join(spec.name for spec in signature.inputs)
    found = arrays_of(path)
    feeds = {}
    for spec in signature.inputs:
        if spec.name not in found:
            why = f"it holds {', '.join(found) or 'nothing'}, and the model's inputs are {names}"
            raise ConfigError(f"the sample {path.name} has no array named {spec.name}", why, _DO)
        feeds[spec.name] = fitting(found[spec.name], spec, path.name)
    return feeds


def fitting(array: Array, spec: TensorSpec, name: str) -> Array:
    """An array of the input's type; strings as objects.

    Args:
        name: of its file, for messages.

    Raises:
        ConfigError: it is of another type or shape.
    """
    if not _fits(array, spec):
        shape = "any shape" if spec.shape is None else str([_size(size) for size in spec.shape])
        why = f"{spec.name} is {array.dtype} {list(array.shape)}, and the model takes {spec.dtype} {shape}"
        raise ConfigError(f"the sample {name} does not fit the model", why, "Correct the sample")
    return array.astype(object if spec.dtype == "STRING" else spec.numpy)


def _fits(array: Array, spec: TensorSpec) -> bool:
    """Whether an array has the input's shape, and a type that becomes the input's without a change of kind."""
    if (array.dtype.kind in "SU") is not (spec.dtype == "STRING"):
        return False
    if spec.dtype != "STRING" and not np.can_cast(array.dtype, spec.numpy, "same_kind"):
        return False
    if spec.shape is None:
        return True
    sizes = zip(array.shape, spec.shape, strict=False)
    return array.ndim == len(spec.shape) and all(not isinstance(size, int) or size == mine for mine, size in sizes)


def _size(size: int | str | None) -> int:
    return size if isinstance(size, int) else -1
