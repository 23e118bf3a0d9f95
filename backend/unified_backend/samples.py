"""Seeded inputs for a signature: what a model is tried with when nobody gave samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from unified_backend.tensors import Array, TensorSpec

__all__ = ["FREE_DIMENSIONS", "FixedDims", "sample_feeds", "shape_of"]

# Tried in this order for dimensions that only a request fixes: image nets want multiples of 32, line recognisers a
# height of 48, audio nets a window, transformers a short sequence; some graphs take only 1.
FREE_DIMENSIONS = (64, 48, 224, 16, 8, 320, 640, 1, 2)

FixedDims = Mapping[str, Mapping[int, int]]


def shape_of(spec: TensorSpec, free: int, fixed: FixedDims | None = None, batch: int | None = None) -> tuple[int, ...]:
    """A concrete shape: `fixed` wins, then the model's own dimension, then `free`; `batch` replaces the first."""
    given = (fixed or {}).get(spec.name, {})
    shape = [
        given.get(axis, dimension if isinstance(dimension, int) else free)
        for axis, dimension in enumerate(spec.shape or ())
    ]
    if batch is not None:
        shape[0] = batch
    return tuple(shape)


def sample_feeds(specs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Array]:
    """One array for each input: floats in [0, 1), integers 0 or 1 (inside any vocabulary), strings of digits."""
    generator = np.random.default_rng(seed)
    return {spec.name: _sample(spec, shapes[spec.name], generator) for spec in specs}


def _sample(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    if spec.dtype == "STRING":
        return generator.integers(0, 10, shape).astype(str).astype(object)
    if spec.dtype == "BF16":
        return (generator.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if spec.dtype.startswith("FP"):
        return generator.random(shape, np.float32).astype(spec.numpy)
    return generator.integers(0, 2, shape).astype(spec.numpy)
