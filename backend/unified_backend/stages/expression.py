"""The little language of the parameters `preprocess` and `postprocess`: `softmax | topk(5, labels.txt)`."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Call", "parse"]

_GRAMMAR = "it must be stages such as: softmax | topk(5, labels=names.txt)"


@dataclasses.dataclass(frozen=True)
class Call:
    """One stage as it is written.

    Attributes:
        name: of the stage, dashes allowed (`keras-tf`).
        arguments: by position: numbers, booleans, None, strings (quoted or bare words), tuples of these; paths.
        options: by name, the same kinds of value.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def with_files(self, folders: Sequence[Path]) -> Call:
        """The call with the names of files that lie in one of some folders as paths; no others can be named."""

        def found(value: Any) -> Any:
            if isinstance(value, str) and value and not Path(value).is_absolute() and ".." not in Path(value).parts:
                return next((folder / value for folder in folders if (folder / value).is_file()), value)
            return value

        options = {name: found(value) for name, value in self.options.items()}
        return Call(self.name, tuple(map(found, self.arguments)), options)


def parse(text: str) -> tuple[Call, ...]:
    """Stages in their order, such as `softmax | topk(5, labels.txt)`.

    Raises:
        ValueError: it is no such expression; says where.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{_GRAMMAR}; this one cannot be read from character {error.offset} on") from None
    return tuple(_chain(tree))


def _chain(node: ast.expr) -> list[Call]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_chain(node.left), *_chain(node.right)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and isinstance(node.right, ast.Call):
        # To Python `keras-tf(size=224)` is keras less tf(size=224).
        name = ast.BinOp(node.left, node.op, node.right.func)
        node = ast.Call(name, node.right.args, node.right.keywords)
    if not isinstance(node, ast.Call):
        return [Call(_word(node))]
    options = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(f"{_GRAMMAR}; ** is none of it")
        options[keyword.arg] = _value(keyword.value)
    return [Call(_word(node.func), tuple(map(_value, node.args)), options)]


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(map(_value, elements))
    return _word(node)


def _word(node: ast.expr) -> str:
    """A bare word: `center`, `keras-tf`, `labels.txt`."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{_word(value)}.{name}"
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return f"{_word(left)}-{_word(right)}"
    raise ValueError(f"{_GRAMMAR}; {ast.unparse(node)} is no name (write other text in quotes)")
