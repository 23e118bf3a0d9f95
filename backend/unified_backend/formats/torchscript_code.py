"""What TorchScript's serialised code says of a method: its arguments, their types and defaults."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["Argument", "Method", "methods"]

_OPEN, _CLOSE = "([{", ")]}"


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a method.

    Attributes:
        type: as TorchScript writes it: `Tensor`, `Optional[Tensor]`, `int`, `List[Tensor]`, ...
        default: its value, if `has_default`.
    """

    name: str
    type: str
    has_default: bool = False
    default: Any = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of a module: its arguments without `self`, and the type of what it returns."""

    arguments: tuple[Argument, ...]
    returns: str


def methods(code: str, name: str) -> dict[str, Method]:
    """The methods of the class `name` in one file of an archive's code.

    Raises:
        ValueError: the file has no such class, or is not what TorchScript writes.
    """
    found = re.search(rf"^class {re.escape(name)}\(\w+\):\n((?:[ \t].*\n|\n)*)", f"{code}\n", re.MULTILINE)
    if found is None:
        raise ValueError(f"it has no class {name}")
    heads = re.finditer(r"^  def (\w+)\(", found[1], re.MULTILINE)
    return {head[1]: _method(found[1][head.end() :]) for head in heads}


def _method(text: str) -> Method:
    *arguments, rest = _split(text)
    _self, *own = (_argument(each) for each in arguments)
    returns = re.match(r"\s*->\s*(.*?):\s*$", rest, re.MULTILINE | re.DOTALL)
    return Method(tuple(own), " ".join(returns[1].split()) if returns else "Tensor")


def _split(text: str) -> Iterator[str]:
    """The arguments up to the closing bracket, and then the rest of the text."""
    depth, start, quote = 0, 0, ""
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[position - 1] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSE and depth:
            depth -= 1
        elif letter in ",)" and not depth:
            yield text[start:position]
            start = position + 1
            if letter == ")":
                yield text[start:]
                return
    raise ValueError("a method's arguments do not end")


def _argument(text: str) -> Argument:
    name, _, rest = text.partition(":")
    if not name.strip().isidentifier():
        raise ValueError(f"{name.strip()[:80]} is no name of an argument")
    kind, equals, default = rest.partition("=")
    kind = " ".join(kind.split())
    if not equals:
        return Argument(name.strip(), kind)
    return Argument(name.strip(), kind, True, _literal(default.strip()))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"the default {text[:80]} is no value") from None
