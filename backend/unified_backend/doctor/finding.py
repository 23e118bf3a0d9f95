"""What one check of `triton-unified doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unified_backend.errors import UnifiedError

__all__ = ["Finding", "Status", "failed", "ok", "refused", "warning"]

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        status: `warning` works until something else comes along; `failed` does not work.
        found: what is there, in one sentence.
        do: the next step; empty if there is none to take.
    """

    status: Status
    found: str
    do: str = ""


def ok(found: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", found)


def warning(found: str, do: str) -> Finding:
    """It works now, or for most uses."""
    return Finding("warning", found, do)


def failed(found: str, do: str) -> Finding:
    """It does not work."""
    return Finding("failed", found, do)


def refused(error: UnifiedError, status: Status = "failed") -> Finding:
    """What `serve` or `install` would refuse, in its own words."""
    return Finding(status, f"{error.what}: {error.why}", error.do)
