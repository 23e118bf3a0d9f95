"""The keys of a model's entries: what each one's bytes depend on, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from unified_backend.cache import Key
from unified_backend.engines import Engine
from unified_backend.engines.sessions import library_digests
from unified_backend.formats import Source
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings

__all__ = ["batching_key", "canonical_key", "engine_key"]


def canonical_key(source: Source, settings: Settings, digests: Sequence[str]) -> Key:
    """Of the canonical model: every byte of the source, and what reads it.

    Args:
        digests: SHA-256 of the bytes of each of the source's files, in hex.
    """
    return Key(
        "canonical",
        {
            "format": source.format,
            "files": list(digests),
            "custom_op_library": library_digests(settings),
            **_versions(),
        },
    )


def batching_key(canonical: str, fixed: FixedDims) -> Key:
    """Of the proof that a model can be batched.

    Args:
        canonical: digest of the canonical model's key.
        fixed: the dims that the config fixes.
    """
    dims = {name: {str(axis): size for axis, size in axes.items()} for name, axes in fixed.items()}
    return Key("batching", {"canonical": canonical, "fixed_dims": dims, **_versions()})


def engine_key(canonical: str, engine: Engine, settings: Settings) -> Key:
    """Of a built engine: the canonical model, and all that the engine says its bytes depend on."""
    return Key("engine", {"canonical": canonical, "engine": engine.name, **engine.key_fields(settings)})


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
