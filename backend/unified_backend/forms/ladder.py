"""The form of a source that engines are built from: the canonical ONNX model, or the source itself.

A source that is not ONNX has ways to a form: conversion by a toolchain, or *directly*, an engine that takes the file as
it is. What the cache holds already is taken first, so that a restart neither converts again nor changes its mind.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from unified_backend.engines import Canonical, Engine
from unified_backend.errors import (
    ConversionError,
    DamagedSourceError,
    EngineError,
    NotCachedError,
    SourceChangedError,
    SourceError,
    ToolchainError,
    UnifiedError,
    VerificationError,
)
from unified_backend.forms.converted import converted
from unified_backend.forms.direct import direct
from unified_backend.forms.foreign import Foreign
from unified_backend.forms.reference import ENGINES, Reference
from unified_backend.lookups import Lookup
from unified_backend.toolchains import environment
from unified_backend.toolchains.catalogue import Toolchain, toolchain_for
from unified_backend.variables import toolchain_directory, toolchain_mode

__all__ = ["find", "ways"]

logger = logging.getLogger(__name__)

_EXPORT, _AS_SAVEDMODEL = "Export it as ONNX", "or as a SavedModel (Keras: model.export(folder))"
_FAILURES = (ConversionError, EngineError, SourceError, ToolchainError, VerificationError)


def find(foreign: Foreign, lookup: Lookup, reference: Reference) -> Canonical:
    """The source in the first form that there is a way to, and that computes what it should.

    Raises:
        UnifiedError: there is none; of one way its own error, of several or none an EngineError.
    """
    there = ways(foreign)
    for way in there:
        try:
            return _form(foreign, way, lookup, reference, required=True)
        except NotCachedError as error:
            if way is there[-1] and foreign.settings.require_cached:
                raise error from None
    label, failures = foreign.source.label, list[tuple[str, UnifiedError]]()
    for way in there:
        name = _name(way)
        try:
            tried = [f"not served by {loser}: {error.what}: {error.why}" for loser, error in failures]
            return _form(foreign, way, lookup, reference, required=False, tried=tried)
        except (DamagedSourceError, SourceChangedError):
            raise
        except _FAILURES as error:
            logger.warning('not taken model=%s by=%s reason="%s: %s"', label, name, error.what, error.why)
            failures.append((name, error))
    if len(failures) == 1:
        raise failures[0][1]
    raise EngineError(
        f"{label}: no engine takes the {foreign.source.format} model",
        "; ".join(f"{name}: {error.why}" for name, error in failures) or _obstacle(foreign),
        _next_step(foreign, [error for _, error in failures]),
    )


def ways(foreign: Foreign) -> list[Engine | Toolchain]:
    """Engines that take the source as it is, and the toolchain that converts it: the best first.

    An installed toolchain comes first, for it brings the source framework's own answers; one that is still to be
    installed comes last.
    """
    direct = [engine for engine in _takers(foreign) if not engine.unusable(foreign.settings.gpu)]
    direct = [] if foreign.as_onnx else direct
    toolchain, mode, chosen = toolchain_for(foreign.source.format), toolchain_mode(), foreign.settings.engine
    if toolchain is None or mode == "off" or (chosen != "auto" and "onnx" not in ENGINES[chosen].accepts):
        return [*direct]
    if environment.python_of(toolchain, toolchain_directory()):
        return [*direct, toolchain] if chosen == "openvino" else [toolchain, *direct]
    return [*direct, toolchain]


def _takers(foreign: Foreign) -> list[Engine]:
    """The engines that take the format, and that the settings allow, the best first."""
    takers = (engine for engine in ENGINES.values() if foreign.source.format in engine.accepts)
    return [engine for engine in takers if foreign.settings.engine in ("auto", engine.name)]


def _obstacle(foreign: Foreign) -> str:
    """Why there is no way at all."""
    chosen, form = foreign.settings.engine, foreign.source.format
    reasons = [
        f"{engine.name}: {reason}" for engine in _takers(foreign) if (reason := engine.unusable(foreign.settings.gpu))
    ]
    takers = [name for name, engine in ENGINES.items() if form in engine.accepts]
    toolchain = toolchain_for(form)
    if foreign.as_onnx and takers:
        changed = "precision" if foreign.settings.lowers else "postprocess"
        reasons.append(f'parameter "{changed}" needs the model as ONNX, and these engines take it as it is')
    if chosen not in ("auto", *takers) and (toolchain is None or "onnx" not in ENGINES[chosen].accepts):
        reasons.append(f'parameter "engine" is "{chosen}", and {", ".join(takers) or "none"} takes it as it is')
    elif toolchain and toolchain_mode() == "off":
        reasons.append(f"TRITON_UNIFIED_TOOLCHAINS is off, and the toolchain {toolchain.name} would convert it")
    return "; ".join(reasons) or f"{form} is recognised, and none of {', '.join(ENGINES)} takes it as it is"


def _next_step(foreign: Foreign, failures: Sequence[UnifiedError]) -> str:
    """What one of several failures advises where it knows more than that no engine takes the model."""
    for error in failures:
        if isinstance(error, VerificationError) or error.do.startswith("Copy it again"):
            return error.do
    if not failures and toolchain_for(foreign.source.format) is None:
        if foreign.as_onnx:
            return "Give the ONNX model that the file was made of, or remove the parameter"
        return "Install the engine that is missing, or correct the parameter `engine`"
    return _EXPORT if foreign.source.format == "savedmodel" else f"{_EXPORT}, {_AS_SAVEDMODEL}"


def _form(
    foreign: Foreign,
    way: Engine | Toolchain,
    lookup: Lookup,
    reference: Reference,
    required: bool,
    tried: Sequence[str] = (),
) -> Canonical:
    if isinstance(way, Toolchain):
        return converted(foreign, way, lookup, reference, required, tried).canonical(foreign.source.label)
    return direct(foreign, way, lookup, required, tried)


def _name(way: Engine | Toolchain) -> str:
    return f"conversion ({way.name})" if isinstance(way, Toolchain) else way.name
