"""Engines for a GPU that is not here: TensorRT-RTX builds them anywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from unified_backend.cache import Cache
from unified_backend.engines.tensorrt import TensorRtRtx
from unified_backend.errors import EngineError, Refused
from unified_backend.gpus import Gpu
from unified_backend.loading import Described
from unified_backend.lookups import Lookup
from unified_backend.model_keys import AHEAD, engine_key

__all__ = ["build_ahead", "target"]

_ARCHITECTURE = re.compile(r"sm(\d{1,2})(\d)")
_ENGINE = TensorRtRtx()


def target(architecture: str) -> Gpu | None:
    """A GPU of an architecture (`sm89`) that need not be here; None where the text names none.

    Raises:
        Refused: TensorRT-RTX is not installed, or has nothing for it.
    """
    match = _ARCHITECTURE.fullmatch(architecture)
    if match is None:
        return None
    gpu = Gpu(-1, architecture, (int(match[1]), int(match[2])))
    if reason := _ENGINE.no_target(gpu):
        raise Refused(
            f'nothing can be built for "{architecture}" here',
            f"tensorrt_rtx: {reason}",
            "Build on a host with that GPU",
        )
    return gpu


def build_ahead(described: Described, cache: Cache) -> str:
    """Put the engine for a GPU into the cache; a host with such a GPU verifies it when it first loads it.

    Args:
        described: for that GPU, as a load there describes it: simplified and lowered alike.

    Returns:
        what was built, in words.

    Raises:
        EngineError: the settings want another engine, the source is not ONNX and is not converted to it, or
            TensorRT-RTX does not take the model.
    """
    canonical, settings, gpu = described.canonical, described.settings, described.settings.gpu
    assert gpu is not None
    wanted = settings.engine
    if wanted not in ("auto", _ENGINE.name) or canonical.format != "onnx":
        why = (
            f'parameter "engine" is "{wanted}"'
            if canonical.format == "onnx"
            else f"{canonical.format} is served as it is"
        )
        raise EngineError(
            f"{canonical.label}: nothing to build for {gpu.architecture}", why, "Leave it out with --model"
        )
    lookup = Lookup(canonical.label, described.snapshot, settings, cache, described.report)

    def make(folder: Path) -> dict[str, Any]:
        return {**_ENGINE.build(canonical, settings, folder), AHEAD: True}

    with described.report.phase("build"):
        lookup(engine_key(canonical.digest, _ENGINE, settings), make)
    return f"{_ENGINE.name}: for {gpu.architecture}, verified where it is first loaded"
