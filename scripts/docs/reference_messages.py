"""Every error that the package can raise, as its code words it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from reference_parameters import table
from unified_backend import errors

__all__ = ["messages", "raised"]

_GAP = "…"
_SHORTEST = 12  # characters of a message that is more than names and values


def messages() -> str:
    """A section for each class of error: what it says, why, and what to do."""
    rows = defaultdict(set)
    for name, what, why, do in raised():
        if len(what.replace(_GAP, "").strip(": ")) >= _SHORTEST:
            rows[name].add((f"`{what}`", why, do))
    return "\n".join(
        f"## {name}\n\n{table(('what', 'why', 'what to do'), sorted(rows[name]))}" for name in sorted(rows)
    )


def raised() -> Iterator[tuple[str, str, str, str]]:
    """Class, what, why and what to do of each error that is made somewhere in the package."""
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 3:
                name = node.func.id
                if name == "Refused" or (name.endswith("Error") and name in errors.__all__):
                    what, why, do = map(_worded, node.args)
                    yield name, what, why, do


def _worded(node: ast.expr) -> str:
    """The text of an expression, with a gap for each value in it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_worded(part) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _worded(left) + _worded(right)
        case ast.IfExp(body=body, orelse=other):
            return f"{_worded(body)}, or {_worded(other)}"
    return _GAP
