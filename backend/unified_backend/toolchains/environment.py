"""Toolchain environments on disk: made once by pip from a lock file, whole or not there at all."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Literal

from unified_backend import hosts
from unified_backend.cache.flight import one_at_a_time
from unified_backend.errors import ToolchainError
from unified_backend.toolchains.catalogue import TOOLCHAINS, Toolchain
from unified_backend.toolchains.pip import OPTIONS, check_wheelhouse, pip_command, run_step
from unified_backend.toolchains.soundness import changed, damage

__all__ = ["Installed", "install", "installed", "pip_command", "python_of", "remove", "require", "state", "verify"]

logger = logging.getLogger(__name__)

_MARKER = "toolchain.json"  # written last: a folder without it is not an environment
_PART = ".part-"


@dataclasses.dataclass(frozen=True)
class Installed:
    """One environment on disk.

    Attributes:
        current: it is what the catalogue's lock file says; others are left from another version of this package.
    """

    name: str
    folder: Path
    current: bool


def python_of(toolchain: Toolchain, root: Path) -> Path | None:
    """The environment's interpreter, or None where it is not installed.

    Args:
        root: of `settings.toolchain_directory`.
    """
    folder = _place(toolchain, root)
    return folder / "bin" / "python" if (folder / _MARKER).is_file() else None


def state(toolchain: Toolchain, root: Path) -> Literal["missing", "installed", "damaged"]:
    """What a quick look at the environment finds; see `verify` for a thorough one."""
    python = python_of(toolchain, root)
    if python is None:
        return "missing"
    return "damaged" if damage(toolchain, python.parent.parent) else "installed"


def require(toolchain: Toolchain, root: Path, mode: str, label: str) -> Path:
    """The environment's interpreter, installed if it is missing and may be.

    Args:
        mode: of `settings.toolchain_mode`.
        label: the model that waits for it.

    Raises:
        ToolchainError: it is missing and may not be installed, or cannot be.
    """
    python = python_of(toolchain, root) if mode != "off" else None
    if python:
        return python
    if mode != "auto":
        raise ToolchainError(
            f"{label}: the toolchain {toolchain.name} is {'off' if mode == 'off' else 'not installed'}",
            f"TRITON_UNIFIED_TOOLCHAINS is {mode}",
            "Set the variable to installed or auto"
            if python_of(toolchain, root)
            else f"Run `triton-unified toolchain install {toolchain.name}`, or set the variable to auto",
        )
    logger.info("waiting model=%s for=toolchain name=%s", label, toolchain.name)
    try:
        return install(toolchain, root)
    except ToolchainError as error:
        raise ToolchainError(f"{label}: {error.what}", error.why, error.do) from None


def install(toolchain: Toolchain, root: Path, wheelhouse: Path | None = None) -> Path:
    """Make the environment unless it is there and whole, and return its interpreter; one maker at a time on a disk.

    Args:
        wheelhouse: folder with every wheel of the lock, used in place of an index.

    Raises:
        Refused: the folder of wheels lacks some.
        ToolchainError: pip cannot install it, or what it installed does not import.
    """
    place = _place(toolchain, root)
    try:
        with one_at_a_time(root / ".locks", f"toolchain-{toolchain.name}", f"toolchain={toolchain.name}"):
            if python := python_of(toolchain, root):
                if not (problems := damage(toolchain, place)):
                    return python
                logger.warning(
                    'toolchain damaged name=%s files=%d first="%s" next="installed again"',
                    toolchain.name,
                    len(problems),
                    problems[0],
                )
            if wheelhouse:
                check_wheelhouse(toolchain, wheelhouse)
            place.parent.mkdir(parents=True, exist_ok=True)
            for stale in place.parent.glob(f"{toolchain.name}{_PART}*"):  # of a maker that died: we hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            part = Path(tempfile.mkdtemp(prefix=f"{toolchain.name}{_PART}", dir=place.parent))
            try:
                _make(toolchain, part, wheelhouse)
                part.chmod(0o755)
                damaged = _set_aside(place, toolchain.name) if place.exists() else None
                part.rename(place)
                if damaged:
                    shutil.rmtree(damaged, ignore_errors=True)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise ToolchainError(
            f"the toolchain {toolchain.name} could not be installed in {place.parent}",
            error.strerror or str(error),
            "Free space or make the folder writable, or choose another with TRITON_UNIFIED_TOOLCHAIN_DIR",
        ) from None
    return place / "bin" / "python"


def installed(root: Path) -> list[Installed]:
    """Every environment in the folder of toolchains, whole ones only."""
    current = {_place(toolchain, root): toolchain.name for toolchain in TOOLCHAINS.values()}
    return [
        Installed(marker.parent.name.rpartition("-")[0], marker.parent, marker.parent in current)
        for marker in sorted(root.glob(f"*/{_MARKER}"))
    ]


def remove(environment: Installed) -> None:
    """Delete an environment; what looks for it meanwhile finds it whole or gone.

    Raises:
        OSError: the folder cannot be written.
    """
    shutil.rmtree(_set_aside(environment.folder, environment.name))


def verify(toolchain: Toolchain, root: Path) -> list[str]:
    """What is wrong with an installed environment, a line each; every file is read, and every module imported.

    Raises:
        ToolchainError: it is not installed.
    """
    python = python_of(toolchain, root)
    if python is None:
        raise ToolchainError(
            f"the toolchain {toolchain.name} is not installed",
            f"{_place(toolchain, root)} is not there",
            f"Run `triton-unified toolchain install {toolchain.name}`",
        )
    folder = python.parent.parent
    problems = damage(toolchain, folder) or changed(folder)
    if not problems:
        try:
            _probe(toolchain, folder)
        except ToolchainError as error:
            problems.append(error.why)
    return problems


def _place(toolchain: Toolchain, root: Path) -> Path:
    return root / f"{toolchain.name}-{toolchain.digest[:16]}"


def _set_aside(folder: Path, name: str) -> Path:
    """The folder under a name that nobody looks for."""
    return folder.rename(folder.with_name(f"{name}{_PART}removed-{os.getpid()}"))


def _make(toolchain: Toolchain, part: Path, wheelhouse: Path | None) -> None:
    pip = pip_command()
    began = time.monotonic()
    venv = [hosts.interpreter(), "-I", "-m", "venv", "--without-pip", str(part)]
    run_step(toolchain, "making the environment", venv, began)
    source = ("--no-index", "--find-links", str(wheelhouse.absolute())) if wheelhouse else ()
    # The outer pip, so that none is left inside for a converter to call.
    install = [*pip, "--python", str(part / "bin" / "python"), "install", *OPTIONS, *source]
    wanted = ["--no-deps", "--require-hashes", "--no-compile", "--quiet", "--requirement", str(toolchain.lock)]
    run_step(toolchain, "downloading and installing", [*install, *wanted], began, wheelhouse)
    _probe(toolchain, part)
    (part / _MARKER).write_text(json.dumps({"toolchain": toolchain.name, "digest": toolchain.digest}))
    logger.info("installed toolchain=%s seconds=%.0f", toolchain.name, time.monotonic() - began)


def _probe(toolchain: Toolchain, folder: Path) -> None:
    """Import what conversions import; the first time this also writes their byte code, half of a cold start."""
    code = f"{toolchain.prelude}\nimport {', '.join(toolchain.imports)}"
    command = [str(folder / "bin" / "python"), "-I", "-c", code]
    run_step(toolchain, "importing it once", command, time.monotonic())
