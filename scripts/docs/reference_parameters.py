"""The tables of parameters: from the settings' docstrings, parsers and defaults, and from what refuses them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.formats import FORMATS
from unified_backend.formats.parameters import refuse_unused
from unified_backend.forms.reference import ENGINES
from unified_backend.settings import FIELDS, Settings, parameter_parsers
from unified_backend.tensorrt_options import TensorRtOptions
from unified_backend.values import SWITCH, batch_sizes, choice, parse_bytes

__all__ = ["parameters", "table"]

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_GIGABYTE = 1024**3


def parameters() -> str:
    """Every parameter, and which formats have those that not every one has."""
    parsers = parameter_parsers(tuple(ENGINES))
    fields = {field.name: field for kind in (Settings, TensorRtOptions) for field in dataclasses.fields(kind)}
    said = _attributes(Settings) | _attributes(TensorRtOptions)
    rows = [
        (
            f'<span id="{name}">`{name}`</span>',
            said[FIELDS.get(name, name)],
            _values(parser),
            _default(fields[FIELDS.get(name, name)], parser),
        )
        for name, parser in parsers.items()
    ]
    rows.append(("`session.*` and others", said["session_options"], "text", "none"))
    of = [(f"`{name}`", ", ".join(having)) for name in parsers if len(having := _having(name)) < len(FORMATS)]
    return (
        f"{table(('parameter', 'what it sets', 'values', 'default'), rows)}\n"
        "These are of some formats only, and refused where a model's format has not got them:\n\n"
        f"{table(('parameter', 'formats that have it'), of)}"
    )


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(headings), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _attributes(kind: type) -> dict[str, str]:
    """What a docstring says of each attribute, as one line."""
    text = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    return {match[1]: " ".join(match[2].split()) for match in _ATTRIBUTE.finditer(text)}


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


def _default(field: dataclasses.Field[Any], parser: Callable[[str], Any]) -> str:
    """The value as a config would write it."""
    value = field.default
    if isinstance(parser, choice):
        words = [word for word, meaning in parser.allowed.items() if meaning == value and word]
        plain = [word for word in words if word in ("true", "false")] or words
        return f"`{plain[0]}`" if plain else "none"
    if parser is batch_sizes and value is None:
        return "`auto`"
    if parser is parse_bytes and value:
        return f"`{value // _GIGABYTE}GiB`"
    return "none" if value in (None, ()) else f"`{value}`"


def _having(name: str) -> list[str]:
    """The formats that do not refuse a parameter."""
    field = FIELDS.get(name, name)
    if field not in {one.name for one in dataclasses.fields(Settings)}:
        return list(FORMATS)
    given = dataclasses.replace(Settings(), **{"precision": "fp16", field: "given"})
    return [form for form in FORMATS if _takes(form, given)]


def _takes(form: str, given: Settings) -> bool:
    try:
        refuse_unused(form, given, form)
    except ConfigError:
        return False
    return True
