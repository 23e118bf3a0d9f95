"""Every error a user can meet: one small hierarchy, each class tied to a Triton error code and an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "CacheError",
    "CacheFullError",
    "ConfigError",
    "ConversionError",
    "DamagedSourceError",
    "EngineError",
    "MeasurementError",
    "NotCachedError",
    "Refused",
    "RequestError",
    "ServerError",
    "SourceChangedError",
    "SourceError",
    "ToolchainError",
    "UnifiedError",
    "VerificationError",
    "one_line",
    "printable",
]


def printable(text: str) -> str:
    """`text` without lone surrogates.

    Triton's stub runs in the C locale, where Python spells the bytes of a file name that are not ASCII as surrogates.
    pybind11 cannot cast them: the stub dies, and the load hangs for ever.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    """Text that others may have made, as it may go to a terminal or a page: no line breaks, no escape codes."""
    return "".join(letter if letter.isprintable() else " " for letter in printable(text))


class UnifiedError(Exception):
    """What went wrong, why, and what to do about it.

    Args:
        what: the thing that failed and how, for example `detector/1: no model found`.
        why: the reason, in one clause or more.
        do: the next step for the person who reads it.

    Attributes:
        triton_code: name of a member of `TritonError` (`INVALID_ARG`, `INTERNAL`, ...).
        exit_code: of the command line: 1 failed, 2 refused.
    """

    triton_code = "INTERNAL"
    exit_code = 1

    def __init__(self, what: str, why: str, do: str) -> None:
        super().__init__(what, why, do)
        self.what = what.rstrip(". ")
        self.why = why.rstrip(". ")
        self.do = do.rstrip(". ")

    def __str__(self) -> str:
        return printable(f"{self.what}: {self.why}. {self.do}.")


class SourceError(UnifiedError):
    """The file or folder a user dropped is not a model that can be served.

    Attributes:
        facts: what it tells all the same, as `Description.facts`; None where it cannot be read.
    """

    triton_code = "INVALID_ARG"
    facts: Mapping[str, Any] | None = None


class SourceChangedError(UnifiedError):
    """The source's files changed while something was made of them, which is thrown away."""

    triton_code = "UNAVAILABLE"

    def __init__(self, label: str) -> None:
        super().__init__(
            f"{label}: the model changed while it was being loaded",
            "its files are not those that were there at the start",
            "Load it again when they are complete; to update a model that is served, move files in or add a version",
        )


class ConfigError(UnifiedError):
    """config.pbtxt (or a parameter, or an environment variable) contradicts the model or itself."""

    triton_code = "INVALID_ARG"


class ToolchainError(UnifiedError):
    """An environment with a framework is missing where it may not be made, or cannot be made."""

    triton_code = "UNAVAILABLE"


class ConversionError(UnifiedError):
    """A source could not be turned into the canonical model: the worker failed, or what it made is no model."""


class DamagedSourceError(ConversionError):
    """The source framework says that a file of the source is damaged: no other way to serve it is tried."""

    triton_code = "INVALID_ARG"


class VerificationError(UnifiedError):
    """What was made of a source does not compute what the source computes."""


class EngineError(UnifiedError):
    """An engine could not be built, loaded or run."""


class CacheError(UnifiedError):
    """The cache directory cannot be used."""


class CacheFullError(CacheError):
    """There is no room to write what was made, here or in the temporary folder."""


class NotCachedError(CacheError):
    """An entry is missing where `require_cached` forbids to make it."""

    triton_code = "UNAVAILABLE"

    def __init__(self, label: str, kind: str, digest: str) -> None:
        model = label.rpartition("/")[0] or label
        super().__init__(
            f"{label}: its {kind} {digest[:12]} is not in the cache",
            "require_cached (or build: never) is set, so that nothing is built while a server starts",
            f"Build it ahead with `triton-unified build REPOSITORY --model {model}`, or see what differs from the "
            "entries there with `triton-unified cache explain MODEL_DIR`",
        )


class RequestError(UnifiedError):
    """One request cannot be answered; the others of its batch are not touched by it."""

    triton_code = "INVALID_ARG"


class ServerError(UnifiedError):
    """A Triton server is missing, cannot start, or is not the one expected."""


class MeasurementError(UnifiedError):
    """A model was not measured: it does not load in the server, or perf_analyzer saw no request end."""


class Refused(UnifiedError):  # noqa: N818 - it is a refusal, not a failure
    """A command was asked for something it will not do: bad usage or bad input."""

    triton_code = "INVALID_ARG"
    exit_code = 2
