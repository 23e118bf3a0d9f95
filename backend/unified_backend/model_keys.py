"""The keys of a model's entries: what each one's bytes depend on, and nothing else."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend import batching, hosts, verification
from unified_backend.cache import FileMemo, Key
from unified_backend.conversion import convert, normalise
from unified_backend.engines import Engine
from unified_backend.engines.sessions import library_digests, runtime_version
from unified_backend.formats import Source
from unified_backend.formats.description import Description
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.tensors import Signature
from unified_backend.toolchains.catalogue import Toolchain

__all__ = [
    "AHEAD",
    "batching_key",
    "canonical_key",
    "conversion_key",
    "converted_key",
    "direct_key",
    "engine_key",
    "verification_key",
]

AHEAD = "built_ahead"  # fact of an engine that could not be run where it was built


def canonical_key(source: Source, settings: Settings, digests: Sequence[str], memo: FileMemo) -> Key:
    """Of the canonical model of an ONNX source: every byte of it, and what reads it.

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


def conversion_key(
    source: Source, job: Mapping[str, Any], digests: Sequence[str], samples: Sequence[str], toolchain: Toolchain
) -> Key:
    """Of what the worker makes of a source: every byte of it and of the user's samples, the job, and the toolchain.

    Args:
        job: of `convert.job_of`.
        digests: SHA-256 of the bytes of each of the source's files, in hex.
        samples: likewise of the user's samples.
    """
    return Key(
        "conversion",
        {
            "files": list(digests),
            "samples": list(samples),
            "job": dict(job),
            "toolchain": toolchain.name,
            "lock": hashlib.sha256(toolchain.lock.read_bytes()).hexdigest(),
            "recipe": convert.RECIPE,
        },
    )


def converted_key(converted: str, settings: Settings, memo: FileMemo) -> Key:
    """Of the canonical model made from a conversion, and of the proof that it computes what the source does.

    Args:
        converted: digest of the conversion's key.
    """
    return Key(
        "canonical",
        {
            "conversion": converted,
            "onnx": _version("onnx", memo),
            "onnxruntime": runtime_version(),
            "session_options": dict(settings.session_options),
            "custom_op_library": library_digests(settings),
            "recipe": [normalise.RECIPE, batching.RECIPE, verification.RECIPE],
            "verify": settings.verify,
            "tolerance": settings.tolerance,
        },
    )


def direct_key(
    source: Source,
    description: Description,
    fixed: FixedDims,
    digests: Sequence[str],
    samples: Sequence[str],
    engine: Engine,
    settings: Settings,
) -> Key:
    """Of the finding that an engine takes a source as it is and computes what it should.

    Args:
        description: what the source says of itself, as the settings choose from it.
        fixed: the dims that the config fixes.
        digests: SHA-256 of the bytes of each of the source's files, in hex.
        samples: likewise of the user's samples.
    """
    return Key(
        "direct",
        {
            "format": source.format,
            "files": list(digests),
            "samples": list(samples),
            "signature": Signature(description.inputs, description.outputs).to_json(),
            "inner": dict(description.inner),
            "job": dict(description.job),
            "fixed_dims": _written(fixed),
            "engine": engine.name,
            "cpu": hosts.cpu_features(),
            "verify": settings.verify,
            "tolerance": settings.tolerance,
            "recipe": verification.RECIPE,
            **engine.key_fields(settings),
        },
    )


def batching_key(canonical: str, fixed: FixedDims) -> Key:
    """Of the proof that a model can be batched; versions and options it depends on are in the canonical model's key.

    Args:
        canonical: digest of the canonical model's key.
        fixed: the dims that the config fixes.
    """
    return Key(
        "batching",
        {"canonical": canonical, "fixed_dims": _written(fixed), "cpu": hosts.cpu_features(), "recipe": batching.RECIPE},
    )


def engine_key(canonical: str, engine: Engine, settings: Settings) -> Key:
    """Of a built engine: the canonical model, and all that the engine says its bytes depend on."""
    return Key("engine", {"canonical": canonical, "engine": engine.name, **engine.key_fields(settings)})


def verification_key(engine: str, judge: str, settings: Settings) -> Key:
    """Of the proof that an engine which was built elsewhere computes on this GPU what it should.

    Args:
        engine: digest of the engine's key.
        judge: the engine that it is compared with.
    """
    assert settings.gpu is not None
    return Key(
        "verification",
        {
            "engine": engine,
            "judge": judge,
            "gpu": settings.gpu.name,
            "verify": settings.verify,
            "tolerance": settings.tolerance,
            "recipe": verification.RECIPE,
        },
    )


def _written(fixed: FixedDims) -> dict[str, Any]:
    """Fixed dims as JSON values."""
    return {name: {str(axis): size for axis, size in axes.items()} for name, axes in fixed.items()}


def _version(package: str, memo: FileMemo) -> str:
    """An installed package's version; importing onnx to ask for it is a quarter of a warm load."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return str(memo.recall(Path(spec.origin), "version", lambda: importlib.import_module(package).__version__))
