"""Seeded inputs for a signature: what a model is tried with when nobody gave samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["FixedDims", "Recipe", "recipes"]

FixedDims = Mapping[str, Mapping[int, int]]

# Tried in this order for dimensions that only a request fixes: image nets want multiples of 32, line recognisers a
# height of 48, audio nets a window, transformers a short sequence; some graphs take only 1.
_FREE_DIMENSIONS = (64, 48, 224, 16, 8, 320, 640, 1, 2)
# Upper bounds of sample integers: below 100 is inside most vocabularies, 0 and 1 inside every one. The wide range comes
# first: inputs of 0 and 1 alone make ill-conditioned sums (magika: 3e-3 between batch sizes, against 1e-7).
_INTEGER_BOUNDS = (100, 2)


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
