"""Stages of the user's own, in files of the version folder."""

from __future__ import annotations

import ast
from pathlib import Path

from unified_backend.gpus import Gpu
from unified_backend.stages import Stage
from unified_backend.stages.dali_pipeline import dali_stage
from unified_backend.stages.python_function import python_stage

__all__ = ["user_stage"]


def user_stage(path: Path, max_batch_size: int, threads: int, gpu: Gpu | None, label: str) -> Stage:
    """The stage in a file.

    Raises:
        ConfigError: the file cannot be used.
    """
    if path.suffix == ".dali" or _defines_pipeline(path):
        return dali_stage(path, max_batch_size, threads, gpu, label)
    return python_stage(path, label)


def _defines_pipeline(path: Path) -> bool:
    """Whether a Python file has a function that DALI's decorator makes a pipeline; it need not run to be told."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # which is told when it is run
    decorators = (one for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for one in node.decorator_list)
    called = (one.func if isinstance(one, ast.Call) else one for one in decorators)
    return any("pipeline_def" in ast.unparse(one) for one in called)
