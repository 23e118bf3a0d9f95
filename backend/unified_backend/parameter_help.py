"""What each parameter does, may be, and is if nobody sets it: from the settings' docstrings, parsers and defaults."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

from unified_backend.settings import FIELDS, Settings, parameter_parsers
from unified_backend.tensorrt_options import TensorRtOptions
from unified_backend.values import SWITCH, batch_sizes, choice, parse_bytes

__all__ = ["ParameterHelp", "parameter_help", "said_of_fields"]

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_GIGABYTE = 1024**3


@dataclasses.dataclass(frozen=True)
class ParameterHelp:
    """A parameter, for a person.

    Attributes:
        what: it sets, in a sentence.
        values: that it may have, as words in backticks or in a phrase.
        default: as a config would write it; None where nothing is set.
    """

    what: str
    values: str
    default: str | None


def parameter_help(engines: tuple[str, ...]) -> dict[str, ParameterHelp]:
    """Every parameter, by its name in a config.

    Args:
        engines: names that `engine` may take beside `auto`.
    """
    fields = {field.name: field for kind in (Settings, TensorRtOptions) for field in dataclasses.fields(kind)}
    said = said_of_fields()
    return {
        name: ParameterHelp(said[field], _values(parser), _default(fields[field], parser))
        for name, parser in parameter_parsers(engines).items()
        if (field := FIELDS.get(name, name))
    }


def said_of_fields() -> dict[str, str]:
    """What the docstrings of the settings say of each field, as one line."""
    texts = [(inspect.getdoc(kind) or "").partition("Attributes:\n")[2] for kind in (Settings, TensorRtOptions)]
    return {match[1]: " ".join(match[2].split()) for text in texts for match in _ATTRIBUTE.finditer(text)}


def _values(parser: Callable[[str], Any]) -> str:
    match parser:
        case choice(allowed=allowed):
            words = ["true", "false"] if SWITCH.items() <= allowed.items() else []
            return ", ".join(
                f"`{word}`" for word in (*words, *(allowed.keys() - SWITCH.keys() if words else allowed)) if word
            )
    if parser is str:
        return "text"
    first = (inspect.getdoc(parser) or "").partition("\n")[0].rstrip(".")
    return first[0].lower() + first[1:] if not first.startswith("JSON") else first


def _default(field: dataclasses.Field[Any], parser: Callable[[str], Any]) -> str | None:
    value: Any = field.default
    if isinstance(parser, choice):
        words = [word for word, meaning in parser.allowed.items() if meaning == value and word]
        plain = [word for word in words if word in ("true", "false")] or words
        return plain[0] if plain else None
    if parser is batch_sizes and value is None:
        return "auto"
    if parser is parse_bytes and value:
        return f"{value // _GIGABYTE}GiB"
    return None if value in (None, ()) else str(value)
