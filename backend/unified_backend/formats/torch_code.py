"""Code that may hide in PyTorch's archives, found without running any: in pickles, in expressions, in graphs' targets.

`torch.load`, `torch.export.load` and what they call unpickle members, evaluate expressions of shapes and look operators
up by name. A file from a stranger must have nothing in these places but what PyTorch itself writes there.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.pickles import imports
from unified_backend.formats.torch_archive import TorchArchive, opened

__all__ = ["refuse_code"]

# `module name` that tensors, modules of TorchScript and lists of them are made by.
_NAMES = re.compile(
    r"__torch__(\.\S+)? \w+"
    r"|torch\._utils _rebuild_(tensor_v2|qtensor|parameter)"
    r"|torch\.jit\._pickle \w+"
    r"|torch (\w+Storage|Size|device|b?float\w*|u?int\w*|bool|complex\w*|strided|per_(tensor|channel)_affine\w*)"
    r"|collections OrderedDict"
)
_PROGRAM = re.compile(r"models/.+\.json|serialized_exported_program\.json")
_TARGETS = re.compile(
    r"torch\.ops\.\w+\.\w+\.\w+|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\.ops\.higher_order\.\w+"
)
_FUNCTIONS = frozenset(
    {
        *(
            "Symbol",
            "Integer",
            "Float",
            "Max",
            "Min",
            "Mod",
            "PythonMod",
            "FloorDiv",
            "CeilDiv",
            "CleanDiv",
            "Abs",
            "Pow",
        ),
        *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Where", "ModularIndexing", "IntTrueDiv", "ToFloat"),
        *("TruncToInt", "RoundToInt", "FloorToInt", "CeilToInt", "Add", "Mul", "floor", "ceiling", "sqrt"),
    }
)
_ATTRIBUTES = frozenset({"size", "stride", "storage_offset", "shape", "ndim"})
_VARIABLE = re.compile(r"[a-z]{1,2}\d+|L|oo|int_oo|True|False")
_NODES = (
    *(ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.UnaryOp, ast.BinOp, ast.Compare, ast.BoolOp),
    *(ast.Subscript, ast.Attribute, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context),
)


def refuse_code(path: Path) -> None:
    """Look through everything in one of PyTorch's archives that loading it there would run.

    Raises:
        SourceError: there is what PyTorch itself never writes; or the archive is damaged.
    """
    with opened(path) as archive:
        if found := next(_code_in(archive), None):
            raise SourceError(
                f"{path.name} holds code that is not the model's", found, "Do not load it: PyTorch wrote no such file"
            )


def _code_in(archive: TorchArchive) -> Iterator[str]:
    """Each place in an archive that would run something, in words.

    Raises:
        ValueError: a pickle ends too early, or a program is no JSON.
    """
    for name in archive.names:
        if _PROGRAM.fullmatch(name):
            yield from _in_program(json.loads(archive.read(name)))
            continue
        head = archive.head(name)
        if name.endswith((".pkl", ".debug_pkl")) or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04")):
            yield from _in_pickle(name, archive.read(name))
        elif head == b"PK\x03\x04":
            yield from _in_zip(name, archive.read(name))


def _in_program(value: Any) -> Iterator[str]:
    """Each place in an exported program's JSON that would run something, in words."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, dict):
            waiting.extend(each.values())
            if isinstance(text := each.get("expr_str"), str) and not _is_arithmetic(text):
                yield f"the expression {text[:80]} is no arithmetic of shapes"
            for text in each.get("guards_code") or ():
                if not _is_arithmetic(str(text)):
                    yield f"the guard {str(text)[:80]} is no arithmetic of shapes"
            if "inputs" in each and isinstance(text := each.get("target"), str) and not _TARGETS.fullmatch(text):
                yield f"{text[:80]} is no operator of PyTorch's"


def _in_pickle(name: str, data: bytes) -> Iterator[str]:
    try:
        yield from (f"{name} would import {each}" for each in _foreign_names(data))
    except ValueError:
        if name.endswith(".pkl"):
            raise
        # Weights as they are, whose first bytes happen to be those of a pickle: nothing unpickles them.


def _foreign_names(data: bytes) -> list[str]:
    """What a pickle would import that PyTorch's own archives never name."""
    return [name.replace(" ", ".") for name in imports(data) if not _NAMES.fullmatch(name)]


def _in_zip(name: str, data: bytes) -> Iterator[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        for member in inner.namelist():
            if member.endswith(".pkl"):
                yield from _in_pickle(f"{name}/{member}", inner.read(member))


def _is_arithmetic(text: str) -> bool:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(_is_harmless, ast.walk(tree)))


def _is_harmless(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _FUNCTIONS or _VARIABLE.fullmatch(name) is not None
        case ast.Attribute(attr=name):
            return name in _ATTRIBUTES
        case ast.Call(func=function):
            return isinstance(function, (ast.Name, ast.Attribute))
        case _:
            return isinstance(node, _NODES)
