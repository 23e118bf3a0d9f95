"""Source -> ONNX: runs the worker in the format's toolchain, and takes only what it can have made."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import ConversionError
from unified_backend.formats import Source
from unified_backend.formats.description import Description
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.toolchains import job as jobs
from unified_backend.toolchains.catalogue import Toolchain

__all__ = ["MODEL", "OPSET", "RECIPE", "convert", "job_of"]

logger = logging.getLogger(__name__)

RECIPE = 3  # part of the conversion's key: raised when the same source and options would give other files
MODEL = "model.onnx"
OPSET = 18  # the newest that tf2onnx 1.17 writes; every rung reads it
_DISK_BYTES = 64 * 10**9


def job_of(source: Source, description: Description, settings: Settings, fixed: FixedDims) -> dict[str, Any]:
    """What the worker is asked to do, without where: that part of a conversion's key that is not the source's bytes."""
    return {
        "format": source.format,
        "inputs": [
            {"name": spec.name, "dtype": spec.dtype, "shape": None if spec.shape is None else list(spec.shape)}
            for spec in description.inputs
        ],
        "outputs": [spec.name for spec in description.outputs],
        "inner": dict(description.inner),
        "fixed": {name: {str(axis): size for axis, size in axes.items()} for name, axes in fixed.items()},
        "opset": settings.opset or OPSET,
        "converter": {name: json.loads(text) for name, text in settings.converter},
        "allow_unsafe": settings.allow_unsafe,
        **description.job,
    }


def convert(
    source: Source,
    job: Mapping[str, Any],
    samples: Sequence[Path],
    toolchain: Toolchain,
    python: Path,
    settings: Settings,
    folder: Path,
) -> dict[str, Any]:
    """Convert a source in a process of its own, which also runs the source framework.

    Args:
        job: of `job_of`.
        samples: the user's `.npz` files, whose arrays have the inputs' names.
        python: of the toolchain.
        folder: empty; gets `model.onnx` (not if the result's `failure` says why there is none), its external data,
            and the samples with the framework's own answers.

    Returns:
        the worker's result; `seconds` and `peak_rss_mb` of it; `files`, the model's external data.

    Raises:
        ConversionError: the framework does not load or run the source, or a limit was reached.
    """
    logger.info("converting model=%s format=%s toolchain=%s", source.label, source.format, toolchain.name)
    limits = jobs.Limits(settings.conversion_seconds, settings.conversion_memory, _DISK_BYTES)
    whole = {**job, "path": str(source.path.absolute()), "samples": [str(path.absolute()) for path in samples]}
    done = jobs.run(python, toolchain.worker, whole, folder, limits, source.label)
    result = dict(done.result)
    model = result.get("model")
    if model not in (None, MODEL) or (model and not (folder / MODEL).is_file()):
        raise ConversionError(
            f"{source.label}: the conversion wrote no model",
            f'its result names "{model}"',
            "Report it with the model's format and the toolchain's version",
        )
    kept = {MODEL, *(row["file"] for row in result["samples"])}
    data = _external_data(folder / MODEL) if model else []
    _remove_all_but(folder, kept | set(data))
    return {
        **result,
        "files": data,
        "seconds": round(done.seconds, 3),
        "peak_rss_mb": round(done.peak_rss_bytes / 1e6),
        "toolchain": toolchain.name,
    }


def _external_data(model: Path) -> list[str]:
    from unified_backend.formats.onnx import Onnx

    return Onnx().companions(model)


def _remove_all_but(folder: Path, kept: set[str]) -> None:
    """The framework's own litter (its home and temporary files) is no part of the entry."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in kept:
            path.unlink()
