"""Stages of the user's own, in files of the version folder."""

from __future__ import annotations

from pathlib import Path

from unified_backend.gpus import Gpu
from unified_backend.stages import Stage
from unified_backend.stages.python_function import python_stage

__all__ = ["user_stage"]


def user_stage(path: Path, max_batch_size: int, threads: int, gpu: Gpu | None, label: str) -> Stage:
    """The stage in a file.

    Raises:
        ConfigError: the file cannot be used.
    """
    return python_stage(path, label)
