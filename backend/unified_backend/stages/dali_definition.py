"""A DALI pipeline out of a user's file, serialised: as it lies there, or as a Python function defines it."""

from __future__ import annotations

from pathlib import Path

from unified_backend.errors import ConfigError
from unified_backend.formats.dali_file import is_pipeline
from unified_backend.gpus import Gpu
from unified_backend.stages.dali import arguments, dali_reason
from unified_backend.stages.python_function import module_of

__all__ = ["pipeline_bytes"]


def pipeline_bytes(
    path: Path, max_batch_size: int, threads: int, gpu: Gpu | None, label: str, mark: str = "_is_pipeline_def"
) -> bytes:
    """The pipeline of a file, serialised.

    Args:
        mark: attribute that DALI's decorator sets.

    Raises:
        ConfigError: the file does not run, or has not exactly one pipeline.
    """
    data = path.read_bytes()
    if is_pipeline(data):
        return data
    module = module_of(path, label)
    found = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, mark, False) and value.__module__ == module.__name__
    }
    if len(found) != 1:
        raise ConfigError(
            f"{label}: {path.name} has {len(found)} DALI pipelines",
            f"functions decorated so: {', '.join(found) or 'none'}",
            "Decorate one function with @pipeline_def",
        )
    (name, define), options = found.popitem(), arguments(max_batch_size, threads, gpu)
    try:
        return bytes(define(**options).serialize())
    except (Exception, SystemExit) as error:  # whatever a user's code raises is told
        line = _line(error, path)
        told = " ".join(str(error).split())[:300] or "it returns nothing"
        reason = dali_reason(error) if type(error) is RuntimeError else told
        raise ConfigError(
            f"{label}: {path.name} does not define a pipeline",
            f"{name}: {type(error).__name__}: {reason}{line}",
            "Correct that file",
        ) from error


def _line(error: BaseException, path: Path) -> str:
    """Where in the user's file it happened."""
    numbers, trace = [], error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename).name == path.name:
            numbers.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" ({path.name}:{numbers[-1]})" if numbers else ""
