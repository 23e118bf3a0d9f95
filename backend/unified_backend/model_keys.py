"""The keys of a model's entries: what each one's bytes depend on, and nothing else."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from unified_backend import hosts, verification
from unified_backend.cache import FileMemo, Key
from unified_backend.engines import Engine
from unified_backend.engines.sessions import library_digests, runtime_version
from unified_backend.formats import Source
from unified_backend.graph import normalise
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings

__all__ = ["batching_key", "canonical_key", "engine_key"]


def canonical_key(source: Source, settings: Settings, digests: Sequence[str], memo: FileMemo) -> Key:
    """Of the canonical model: every byte of the source, and what reads it.

    Args:
        digests: SHA-256 of the bytes of each of the source's files, in hex.
        memo: remembers versions of packages that a warm load then need not import.
    """
    return Key(
        "canonical",
        {
            "format": source.format,
            "files": list(digests),
            "custom_op_library": library_digests(settings),
            "onnx": _version("onnx", memo),
            "onnxruntime": runtime_version(),
            "session_options": dict(settings.session_options),
            "recipe": normalise.RECIPE,
        },
    )


def batching_key(canonical: str, fixed: FixedDims) -> Key:
    """Of the proof that a model can be batched; versions and options it depends on are in the canonical model's key.

    Args:
        canonical: digest of the canonical model's key.
        fixed: the dims that the config fixes.
    """
    dims = {name: {str(axis): size for axis, size in axes.items()} for name, axes in fixed.items()}
    return Key(
        "batching",
        {"canonical": canonical, "fixed_dims": dims, "cpu": hosts.cpu_features(), "recipe": verification.RECIPE},
    )


def engine_key(canonical: str, engine: Engine, settings: Settings) -> Key:
    """Of a built engine: the canonical model, and all that the engine says its bytes depend on."""
    return Key("engine", {"canonical": canonical, "engine": engine.name, **engine.key_fields(settings)})


def _version(package: str, memo: FileMemo) -> str:
    """An installed package's version; importing onnx to ask for it is a quarter of a warm load."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return str(memo.recall(Path(spec.origin), "version", lambda: importlib.import_module(package).__version__))
