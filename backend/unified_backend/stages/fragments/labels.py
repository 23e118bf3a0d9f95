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

__all__ = ["LookUp", "read_charset", "read_labels"]


@dataclasses.dataclass(frozen=True)
class LookUp:
    """An output of text, looked up in what the graph gives; see `parts.Lookup`.

    Attributes:
        name: of the output.
        sources: the output of the graph whose values choose.
        kind: `labels`: a name for each index; `text`: the characters of a row of indices, joined.
        names: by index.
    """

    name: str
    sources: tuple[str, ...]
    kind: str
    names: tuple[str, ...]

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
        """JSON values; `from_json` reads them back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> LookUp:
        """What `to_json` wrote."""
        return LookUp(values["name"], tuple(values["sources"]), values["kind"], tuple(values["names"]))

    def _name(self, index: int) -> str:
        return self.names[index] if 0 <= index < len(self.names) else ""


def read_labels(path: Path, classes: int | str | None, options: Options) -> tuple[str, ...]:
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
    if isinstance(classes, int) and len(names) < classes:
        raise options.wrong(
            f"{path.name} has {len(names)} labels, and the model {classes} classes", "Write one line a class"
        )
    return tuple(names)


def read_charset(path: Path, options: Options) -> tuple[str, ...]:
    """The characters in a file, a line each; an empty last line is none."""
    return tuple(_text(path, options).removesuffix("\n").split("\n"))


def _text(path: Path, options: Options) -> str:
    try:
        return path.read_text("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise options.wrong(f"{path.name} cannot be read: {why}", "Save it as UTF-8") from None
