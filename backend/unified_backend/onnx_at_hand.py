"""The ONNX model that a source is, or was made into before: found, never made."""

from __future__ import annotations

from pathlib import Path

from unified_backend.cache import Cache, Snapshot
from unified_backend.errors import NotCachedError, Refused
from unified_backend.formats import Source
from unified_backend.forms.converted import converted
from unified_backend.forms.foreign import foreign
from unified_backend.forms.reference import Reference
from unified_backend.lookups import Lookup, Report
from unified_backend.settings import Settings
from unified_backend.stages.around import alone
from unified_backend.toolchains.catalogue import toolchain_for

__all__ = ["onnx_at_hand"]


def onnx_at_hand(source: Source, settings: Settings, cache: Cache, named: Path) -> Path:
    """The ONNX file: the source itself, or what a load or `convert` with these settings has left in the cache.

    Args:
        named: what a person calls it, for messages.

    Raises:
        Refused: it is not ONNX, and the cache has nothing that was made of it.
        SourceError: it cannot be read.
        ConfigError: a setting names what the model has not got.
    """
    if source.format == "onnx":
        return source.path
    toolchain = toolchain_for(source.format)
    if toolchain is None:
        raise Refused(
            f"{source.label} has no graph of ONNX",
            f"{source.format} models are served as they are, and never become ONNX",
            "Give --netron, which draws many formats",
        )
    lookup = Lookup(source.label, Snapshot(cache.store.memo, source.files), settings, cache, Report())
    form = foreign(source, None, settings, alone(source.label), cache.store.memo)
    try:
        return converted(form, toolchain, lookup, Reference(source.label, settings), required=True).path
    except NotCachedError:
        raise Refused(
            f"{source.label} has no graph of ONNX yet",
            f"it is {source.format}, and what is drawn is the ONNX model that is made of it",
            f"Convert it first: triton-unified convert {named} --out DIR; or give --netron, which draws the "
            "file itself",
        ) from None
