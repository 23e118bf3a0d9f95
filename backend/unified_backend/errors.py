"""Every error a user can meet: one small hierarchy, each class tied to a Triton error code and an exit code."""

from __future__ import annotations

__all__ = [
    "CacheError",
    "ConfigError",
    "EngineError",
    "Refused",
    "RequestError",
    "ServerError",
    "SourceError",
    "UnifiedError",
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
    """The file or folder a user dropped is not a model that can be served."""

    triton_code = "INVALID_ARG"


class ConfigError(UnifiedError):
    """config.pbtxt (or a parameter, or an environment variable) contradicts the model or itself."""

    triton_code = "INVALID_ARG"


class EngineError(UnifiedError):
    """An engine could not be built, loaded or run."""


class CacheError(UnifiedError):
    """The cache directory cannot be used."""


class RequestError(UnifiedError):
    """One request cannot be answered; the others of its batch are not touched by it."""

    triton_code = "INVALID_ARG"


class ServerError(UnifiedError):
    """A Triton server is missing, cannot start, or is not the one expected."""


class Refused(UnifiedError):  # noqa: N818 - it is a refusal, not a failure
    """A command was asked for something it will not do: bad usage or bad input."""

    triton_code = "INVALID_ARG"
    exit_code = 2
