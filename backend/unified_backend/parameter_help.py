"""What each parameter does and what it is if nobody sets it, as `Settings` itself says it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from unified_backend.settings import Settings
from unified_backend.tensorrt_options import TensorRtOptions

__all__ = ["ParameterHelp", "parameter_help"]

_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class ParameterHelp:
    """A parameter, for a person.

    Attributes:
        what: it does, in a sentence.
        default: as it would be written in a config; "" where no text says it, and `what` tells of None.
    """

    what: str
    default: str


def parameter_help() -> dict[str, ParameterHelp]:
    """Every parameter that `Settings` and its options of TensorRT have, by the name of the field."""
    return {name: help_of for options in (Settings, TensorRtOptions) for name, help_of in _documented(options)}


def _documented(options: type[Settings] | type[TensorRtOptions]) -> Iterator[tuple[str, ParameterHelp]]:
    text = inspect.getdoc(options) or ""
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    for match in _ATTRIBUTE.finditer(text.partition("Attributes:")[2]):
        if (default := fields.get(match[1])) is not dataclasses.MISSING:
            yield match[1], ParameterHelp(" ".join(match[2].split()), _written(default))


def _written(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) if isinstance(default, (str, int, float)) else ""
