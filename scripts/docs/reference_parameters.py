"""The tables of parameters: from the settings' docstrings, parsers and defaults, and from what refuses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from unified_backend.errors import ConfigError
from unified_backend.formats import FORMATS
from unified_backend.formats.parameters import refuse_unused
from unified_backend.forms.reference import ENGINES
from unified_backend.parameter_help import parameter_help, said_of_fields
from unified_backend.settings import FIELDS, Settings

__all__ = ["parameters", "table"]


def parameters() -> str:
    """Every parameter, and which formats have those that not every one has."""
    told = parameter_help(tuple(ENGINES))
    rows = [
        (f'<span id="{name}">`{name}`</span>', row.what, row.values, f"`{row.default}`" if row.default else "none")
        for name, row in told.items()
    ]
    rows.append(("`session.*` and others", said_of_fields()["session_options"], "text", "none"))
    of = [(f"`{name}`", ", ".join(having)) for name in told if len(having := _having(name)) < len(FORMATS)]
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
