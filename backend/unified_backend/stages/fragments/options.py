"""The options of a fragment, taken out of its call one by one; what is left over or wrong is told."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.stages.expression import Call
from unified_backend.tensors import TensorSpec

__all__ = ["Options"]

_REQUIRED = object()


class Options:
    """What a call says.

    Args:
        call: a fragment.
        label: the model, for messages.
        names: of the options that may be given by their places, in that order.

    Attributes:
        given: option -> value.
    """

    def __init__(self, call: Call, label: str, names: Sequence[str] = ()) -> None:
        self.call, self.label = call, label
        if len(call.arguments) > len(names):
            raise self.wrong(
                f"it is given {len(call.arguments)} values without a name",
                f"Write {', '.join(names) or 'none'} so, and the rest as NAME=VALUE",
            )
        self.given = {**dict(zip(names, call.arguments, strict=False)), **call.options}
        if twice := [name for name, _ in zip(names, call.arguments, strict=False) if name in call.options]:
            raise self.wrong(f"{twice[0]} is given twice", "Write it once")
        self._known: list[str] = []

    def wrong(self, why: str, do: str) -> ConfigError:
        """An error in this call."""
        return ConfigError(f'{self.label}: parameter "postprocess": {self.call.name} cannot be composed', why, do)

    def number(self, name: str, default: Any = _REQUIRED, low: float = 0, high: float = float("inf")) -> float:
        """A number within bounds."""
        value = self._taken(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(f"{name} is {value!r}", f"Write a number from {low:g} to {high:g}")
        return value

    def count(self, name: str, default: Any = _REQUIRED, low: int = 1) -> int:
        """A whole number."""
        value = self._taken(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self.wrong(f"{name} is {value!r}", f"Write a whole number of {low} or more")
        return value

    def axis(self, rank: int | None, default: int = -1) -> int:
        """An axis of a tensor."""
        value = self._taken("axis", default)
        if isinstance(value, bool) or not isinstance(value, int) or (rank and not -rank <= value < rank):
            raise self.wrong(f"axis is {value!r}", f"The output has {rank} dimensions: write one of them")
        return value

    def switch(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._taken(name, default)
        if value in ("true", "false"):
            return bool(value == "true")
        if not isinstance(value, bool):
            raise self.wrong(f"{name} is {value!r}", "Write true or false")
        return value

    def choice(self, name: str, default: Any, allowed: Sequence[Any]) -> Any:
        """One of some values."""
        value = self._taken(name, default)
        if value not in allowed:
            raise self.wrong(f"{name} is {value!r}", f"Write one of {', '.join(map(str, allowed))}")
        return value

    def numbers(self, name: str, default: tuple[float, ...], length: int) -> tuple[float, ...]:
        """Several numbers."""
        value = self._taken(name, default)
        fits = isinstance(value, tuple) and len(value) == length
        if not fits or not all(isinstance(one, int | float) for one in value):
            raise self.wrong(f"{name} is {value!r}", f"Write {length} numbers: {name}={default}")
        return tuple(map(float, value))

    def text(self, name: str, default: Any = _REQUIRED) -> str | None:
        """A word or a quoted text; None where it is left out and need not be there."""
        value = self._taken(name, default)
        if isinstance(value, Path):  # a file of this name lies there, and is not meant
            value = value.name
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"{name} is {value!r}", "Write a name")
        return value

    def file(self, name: str, default: Any = _REQUIRED) -> Path | None:
        """A file of the version folder or of the model's, which alone are paths here; see `Call.with_files`."""
        value = self._taken(name, default)
        if value is not None and not isinstance(value, Path):
            raise self.wrong(
                f"{name} is {value}, and there is no such file", "Put it into the version folder or the model's folder"
            )
        return value

    def output(self, outputs: Sequence[TensorSpec], name: str = "of") -> TensorSpec:
        """The output that is worked on: the one that is named, or the only one."""
        value = self.text(name, None)
        found = [spec for spec in outputs if value in (None, spec.name)]
        if len(found) != 1:
            names = ", ".join(spec.name for spec in outputs)
            why = f"{name} is {value}" if value else f"it is not said which output {name} is"
            raise self.wrong(f"{why}; the model gives {names}", f'Write {name}="{outputs[0].name}"')
        return found[0]

    def done(self) -> None:
        """
        Raises:
            ConfigError: an option is left that nobody asked for.
        """
        for name in self.given:
            if name not in self._known:
                close = difflib.get_close_matches(name, self._known, n=1)
                hint = f"Did you mean {close[0]}?" if close else f"Its options are {', '.join(self._known)}"
                raise self.wrong(f"it has no option {name}", hint)

    def _taken(self, name: str, default: Any) -> Any:
        self._known.append(name)
        value = self.given.get(name, default)
        if value is _REQUIRED:
            raise self.wrong(f"{name} is not given", f"Write {self.call.name}({name}=...)")
        return value
