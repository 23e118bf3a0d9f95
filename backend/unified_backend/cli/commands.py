"""The subcommands, each imported when it is asked for: a command waits for its own imports only."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["Commands"]

_PACKAGE = "unified_backend.cli"
# Command -> module and name of its function or, where it has subcommands or a class of its own, of its Typer; help
# lists them in this order.
_COMMANDS = {
    "serve": "serve:app",
    "install": "install:install",
    "uninstall": "install:uninstall",
    "init": "init:init",
    "check": "check:check",
    "inspect": "inspect:inspect",
    "convert": "convert:convert",
    "optimize": "optimize:optimize",
    "tune": "tune:tune",
    "doctor": "doctor:doctor",
    "top": "top:top",
    "build": "build:build",
    "export": "export:export",
    "bench": "bench:bench",
    "cache": "cache:app",
    "toolchain": "toolchain:app",
    "ensemble": "ensemble:app",
}


class Commands(TyperGroup):
    """A group that knows its commands' names before their modules are imported."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Imported(self.commands)  # type: ignore[assignment]  # nothing is added to it

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of help."""
        return list(self.commands)


class _Imported(Mapping[str, Any]):
    """Name -> command; imports what is looked up, once."""

    def __init__(self, registered: Mapping[str, Any]) -> None:
        self._made = dict(registered)
        self._names = (*_COMMANDS, *registered)

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, _, attribute = _COMMANDS[name].partition(":")
            found = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), attribute)
            self._made[name] = _made(name, found)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _made(name: str, found: Any) -> Any:
    app = found
    if not isinstance(app, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command()(found)
    command = typer.main.get_command(app)
    command.name = name
    return command
