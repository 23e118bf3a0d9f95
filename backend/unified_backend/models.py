"""What a version folder holds, opened: a model, or a pipeline of models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend import loading
from unified_backend.cache import Cache
from unified_backend.ensembles.opening import describe_pipeline, is_pipeline, load_pipeline
from unified_backend.formats.pipeline import FORMAT
from unified_backend.gpus import Gpu
from unified_backend.loading import Described, Loaded

__all__ = ["describe", "load"]


def describe(
    label: str,
    folder: Path,
    config: Mapping[str, Any],
    cache: Cache,
    max_batch_size_given: bool = False,
    gpu: Gpu | None = None,
) -> Described:
    """Understand what lies in a version folder and complete its config; see `loading.describe`."""
    if is_pipeline(folder):
        return describe_pipeline(label, folder, config, cache, gpu)
    return loading.describe(label, folder, config, cache, max_batch_size_given, gpu)


def load(described: Described, cache: Cache, only: str | None = None) -> Loaded:
    """Load it; see `loading.load`."""
    if described.source.format == FORMAT:
        return load_pipeline(described, cache)
    return loading.load(described, cache, only)
