"""Names of classes and characters: read from files, and looked up in what the graph gives."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.stages.fragments.options import Options
from unified_backend.tensors import Array, TensorSpec

__all__ = ["FILES", "LookUp", "characters", "look_up", "read_charset", "read_labels"]

FILES = {"labels": "labels", "text": "charset"}  # kind of LookUp -> the option that names its file


@dataclasses.dataclass(frozen=True)
class LookUp:
    """An output of text, looked up in what the graph gives; see `parts.Lookup`.

    Attributes:
        name: of the output.
        sources: the output of the graph whose values choose.
        kind: `labels`: a name for each index; `text`: the characters of a row of indices, joined.
        names: by index.
        classes: that the model has, if known.
        blank: of text, the class that is no character.
        call: number of the fragment that names the file of the names; None where they are the model's own.
    """

    name: str
    sources: tuple[str, ...]
    kind: str
    names: tuple[str, ...]
    classes: int | None = None
    blank: int = 0
    call: int | None = None

    def __call__(self, arrays: Mapping[str, Array]) -> Array:
        """STRING: for labels of the indices' shape, for text `[N, 1]`."""
        indices = arrays[self.sources[0]]
        if self.kind == "labels":
            found = [self._name(index) for index in indices.reshape(-1).tolist()]
            return np.array(found, object).reshape(indices.shape)
        rows = ["".join(self._name(index) for index in row if index >= 0) for row in indices.tolist()]
        return np.array(rows, object).reshape(-1, 1)

    def spec(self, outputs: Sequence[TensorSpec]) -> TensorSpec:
        """Of the output."""
        shape = next(spec.shape for spec in outputs if spec.name == self.sources[0])
        return TensorSpec(self.name, "STRING", shape if self.kind == "labels" or not shape else (shape[0], 1))

    def to_json(self) -> dict[str, Any]:
        """JSON values; `fragments.read_look_up` reads them back. Names out of a file stay there, and may change."""
        return dataclasses.asdict(self) | {"names": self.names if self.call is None else ()}

    def _name(self, index: int) -> str:
        return self.names[index] if 0 <= index < len(self.names) else ""


def look_up(name: str, index: str, path: Path, classes: int | str | None, options: Options) -> LookUp:
    """An output of labels out of a file, by the indices that another output gives."""
    known = classes if isinstance(classes, int) else None
    return LookUp(name, (index,), "labels", read_labels(path, known, options), known)


def read_labels(path: Path, classes: int | None, options: Options) -> tuple[str, ...]:
    """The names of classes in a file: a line each, as Triton's label files have them, or a list in JSON.

    Args:
        classes: that the model has, if known.

    Raises:
        ConfigError: it is not UTF-8, or has fewer names than the model classes.
    """
    text = _text(path, options)
    if path.suffix == ".json":
        try:
            names = json.loads(text)
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise options.wrong(f"{path.name} is no list of names in JSON", 'Write ["first", "second"]')
    else:
        names = text.removesuffix("\n").split("\n")  # not splitlines: U+2028 may be in a label
    if classes is not None and len(names) < classes:
        raise options.wrong(
            f"{path.name} has {len(names)} labels, and the model {classes} classes", "Write one line a class"
        )
    return tuple(names)


def read_charset(path: Path, options: Options) -> tuple[str, ...]:
    """The characters in a file, a line each; an empty last line is none."""
    return tuple(_text(path, options).removesuffix("\n").split("\n"))


def characters(given: tuple[str, ...], blank: int, classes: int | str | None, options: Options) -> tuple[str, ...]:
    """The character of each class: the blank is put in, and a space behind the last where there is a class for it.

    Raises:
        ConfigError: they are not as many as the model has classes.
    """
    found = (*given[:blank], "", *given[blank:])
    if isinstance(classes, int) and len(found) + 1 == classes:
        found = (*found, " ")
    if isinstance(classes, int) and len(found) != classes:
        raise options.wrong(
            f"the charset has {len(found) - 1} characters, and the model {classes - 1} beside the blank",
            "Name the list that it was trained with",
        )
    return found


def _text(path: Path, options: Options) -> str:
    try:
        return path.read_text("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise options.wrong(f"{path.name} cannot be read: {why}", "Save it as UTF-8") from None
