"""A YAML file held to the schema of pipelines: its values, and the line and column that each of them stands at."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import ConfigError

__all__ = ["Marks", "read"]

_SCHEMA = Path(__file__).parent / "schema.json"
_DO = "Correct it there; docs/tasks/pipelines.md has an example"

Place = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Marks:
    """Where the values of a file stand.

    Attributes:
        lines: place of a value (keys and indices from the top) -> its line and column, from 1.
    """

    path: Path
    lines: Mapping[Place, tuple[int, int]]

    def at(self, *place: str | int) -> str:
        """`file:line:column` of a value, or of what it would stand in."""
        while place not in self.lines:
            place = place[:-1]
        line, column = self.lines[place]
        return f"{self.path}:{line}:{column}"


def read(path: Path) -> tuple[dict[str, Any], Marks]:
    """The values of a pipeline's file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or not as the schema has it; says where.
    """
    import jsonschema
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path} cannot be read", str(why), "Name the YAML file of a pipeline") from None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: no YAML", str(getattr(error, "problem", error)), _DO) from None
    if node is None:
        raise ConfigError(f"{path}: it is empty", "a pipeline has name, inputs, outputs and steps", _DO)
    lines: dict[Place, tuple[int, int]] = {}
    _mark(node, (), lines, path)
    marks = Marks(path, lines)
    schema = json.loads(_SCHEMA.read_text())
    errors = sorted(
        jsonschema.Draft202012Validator(schema).iter_errors(values), key=lambda one: list(map(str, one.path))
    )
    if errors:
        place, why = _words(errors[0])
        raise ConfigError(f"{marks.at(*place)}: {_written(place)}", why, _DO)
    return values, marks


def _mark(node: Any, place: Place, lines: dict[Place, tuple[int, int]], path: Path) -> None:
    """
    Raises:
        ConfigError: a key is there twice, of which YAML would take the last without a word.
    """
    lines.setdefault(place, (node.start_mark.line + 1, node.start_mark.column + 1))
    if node.id == "sequence":
        for index, child in enumerate(node.value):
            _mark(child, (*place, index), lines, path)
    elif node.id == "mapping":
        for key, child in node.value:
            at = (key.start_mark.line + 1, key.start_mark.column + 1)
            inner = (*place, str(key.value))
            if inner in lines:
                raise ConfigError(
                    f"{path}:{at[0]}:{at[1]}: {key.value} is there twice", "keys are unique", "Remove one"
                )
            lines[inner] = at
            _mark(child, inner, lines, path)


def _words(error: Any) -> tuple[Place, str]:
    """The place and the reason of one violation, in words for whoever writes YAML."""
    place: Place = tuple(error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.schema.get("properties"), dict):
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        close = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        return (*place, unknown), f"there is no such key{hint}; the keys are {', '.join(known)}"
    if error.validator == "required":
        return place, f"{', '.join(key for key in error.validator_value if key not in error.instance)} is missing"
    if error.validator == "oneOf" and isinstance(error.instance, dict) and "inputs" in error.instance:
        return place, "a step has either a model or a stage"
    if error.validator == "oneOf":
        return place, "it must be names (own name: tensor of the pipeline), or a list of tensors"
    if error.validator == "pattern":
        return place, f'"{error.instance}" may hold letters, digits, "-" and "_" only'
    return place, str(error.message)


def _written(place: Sequence[str | int]) -> str:
    """`steps[2].inputs`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
    return text or "the file"
