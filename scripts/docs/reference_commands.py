"""The reference of the commands: what typer's own help says of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from reference_parameters import table
from unified_backend.cli import app

__all__ = ["commands", "walked"]

_NAME = "triton-unified"


def commands() -> str:
    """A section for each command, with its arguments and options."""
    return "\n".join(_section(name, command) for name, command in walked(typer.main.get_command(app), _NAME))


def walked(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command below one, with its whole name."""
    for word, below in getattr(command, "commands", {}).items():
        if getattr(below, "commands", None):
            yield from walked(below, f"{name} {word}")
        else:
            yield f"{name} {word}", below


def _section(name: str, command: Any) -> str:
    said, *examples = re.split(r"Examples?:\n", command.help or "")
    shown = [param for param in command.params if not param.hidden and param.name != "help"]
    arguments = [_metavar(param) for param in shown if param.param_type_name == "argument"]
    usage = [name, *(["[OPTIONS]"] if len(shown) > len(arguments) else []), *arguments]
    parts = [f"## {name}", said.strip(), f"```console\n$ {' '.join(usage)}\n```"]
    if shown:
        parts.append(table(("argument or option", "what it is", "default"), map(_row, shown)))
    if examples:
        parts.append(f"For example:\n\n```console\n{_lines(examples[0])}\n```")
    return "\n\n".join(parts) + "\n"


def _lines(example: str) -> str:
    return "\n".join(f"$ {line.strip()}" for line in example.strip().splitlines() if line.strip())


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _row(param: Any) -> tuple[str, str, str]:
    if param.param_type_name == "argument":
        return f"`{_metavar(param)}`", param.help or "", "required" if param.required else ""
    flags = ", ".join(f"`{one}`" for one in (*param.opts, *param.secondary_opts))
    value = "" if param.is_flag else f" `{_metavar(param)}`"
    default = param.default
    shown = "" if default in (None, False, True, (), []) or callable(default) else f"`{default}`"
    return flags + value, param.help or "", "required" if param.required else shown
