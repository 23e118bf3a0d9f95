"""Toolchain environments on disk: made once by pip from a lock file, whole or not there at all."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from unified_backend import hosts
from unified_backend.cache.flight import one_at_a_time
from unified_backend.errors import ToolchainError
from unified_backend.toolchains.catalogue import TOOLCHAINS, Toolchain

__all__ = ["Installed", "install", "installed", "pip_command", "python_of", "remove", "require", "verify"]

logger = logging.getLogger(__name__)

_MARKER = "toolchain.json"  # written last: a folder without it is not an environment
_PART = ".part-"
_REPORT_SECONDS = 10.0
# A route to nowhere is known after seconds; pip's own five retries of 15 s each are not worth waiting for.
_BROKEN_CONNECTION = re.compile(r"connection broken by '(?:.*?(\[Errno [^)'\"]*|timed out)|(\w+))")
_PIP = ("--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "15")


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
            f"Run `triton-unified toolchain install {toolchain.name}`, or set the variable to auto",
        )
    logger.info("waiting model=%s for=toolchain name=%s", label, toolchain.name)
    try:
        return install(toolchain, root)
    except ToolchainError as error:
        raise ToolchainError(f"{label}: {error.what}", error.why, error.do) from None


def install(toolchain: Toolchain, root: Path, wheelhouse: Path | None = None) -> Path:
    """Make the environment unless it is there, and return its interpreter; one maker at a time on a disk.

    Args:
        wheelhouse: folder with every wheel of the lock, used in place of an index.

    Raises:
        ToolchainError: pip cannot install it, or what it installed does not import.
    """
    place = _place(toolchain, root)
    try:
        with one_at_a_time(root / ".locks", f"toolchain-{toolchain.name}", f"toolchain={toolchain.name}"):
            if python := python_of(toolchain, root):
                return python
            place.parent.mkdir(parents=True, exist_ok=True)
            for stale in place.parent.glob(f"{toolchain.name}{_PART}*"):  # of a maker that died: we hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            part = Path(tempfile.mkdtemp(prefix=f"{toolchain.name}{_PART}", dir=place.parent))
            try:
                _make(toolchain, part, wheelhouse)
                part.chmod(0o755)
                shutil.rmtree(place, ignore_errors=True)
                part.rename(place)
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
    aside = environment.folder.with_name(f"{environment.name}{_PART}removed-{os.getpid()}")
    environment.folder.rename(aside)
    shutil.rmtree(aside)


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
    problems = [
        problem for record in folder.glob("lib/*/site-packages/*.dist-info/RECORD") for problem in _changed(record)
    ]
    if not problems:
        try:
            _probe(toolchain, folder)
        except ToolchainError as error:
            problems.append(error.why)
    return problems


def pip_command() -> list[str]:
    """How pip is called: that of this environment, else of the Python that it was made from (or of PATH's).

    Environments without a pip of their own are common: an image's, or one made by uv.

    Raises:
        ToolchainError: there is none.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = (hosts.interpreter(), f"{sys.base_prefix}/bin/{name}", shutil.which(name), shutil.which("python3"))
    for candidate in dict.fromkeys(filter(None, candidates)):
        command = [candidate, "-I", "-m", "pip"]
        with suppress(OSError):
            asked = subprocess.run([*command, "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if asked.returncode == 0:
                return command
    raise ToolchainError(
        "no toolchain can be installed",
        f"neither {hosts.interpreter()} nor the Python that its environment was made from has pip",
        "Install it: `apt-get install python3-pip`, or `python -m ensurepip` in this environment",
    )


def _place(toolchain: Toolchain, root: Path) -> Path:
    return root / f"{toolchain.name}-{toolchain.digest[:16]}"


def _make(toolchain: Toolchain, part: Path, wheelhouse: Path | None) -> None:
    pip = pip_command()
    began = time.monotonic()
    venv = [hosts.interpreter(), "-I", "-m", "venv", "--without-pip", str(part)]
    _run(toolchain, "making the environment", venv, began)
    source = ("--no-index", "--find-links", str(wheelhouse.absolute())) if wheelhouse else ()
    # The outer pip, so that none is left inside for a converter to call.
    install = [*pip, "--python", str(part / "bin" / "python"), "install", *_PIP, *source]
    wanted = ["--no-deps", "--require-hashes", "--no-compile", "--quiet", "--requirement", str(toolchain.lock)]
    _run(toolchain, "downloading and installing", [*install, *wanted], began)
    _probe(toolchain, part)
    (part / _MARKER).write_text(json.dumps({"toolchain": toolchain.name, "digest": toolchain.digest}))
    logger.info("installed toolchain=%s seconds=%.0f", toolchain.name, time.monotonic() - began)


def _probe(toolchain: Toolchain, folder: Path) -> None:
    """Import what conversions import; the first time this also writes their byte code, half of a cold start."""
    command = [str(folder / "bin" / "python"), "-I", "-c", f"import {', '.join(toolchain.imports)}"]
    _run(toolchain, "importing it once", command, time.monotonic())


def _run(toolchain: Toolchain, phase: str, command: Sequence[str], began: float) -> None:
    """Run one step; a line at its start and every ten seconds.

    Raises:
        ToolchainError: it fails; has its last lines.
    """
    logger.info('installing toolchain=%s phase="%s"', toolchain.name, phase)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PIP_USER": "0", "PIP_ROOT_USER_ACTION": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _wait(
                child,
                lambda: logger.info(
                    'installing toolchain=%s phase="%s" seconds=%.0f', toolchain.name, phase, time.monotonic() - began
                ),
            )
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        output.seek(0)
        lines = [line.strip() for line in output.read().splitlines() if line.strip()]
    if child.returncode:
        raise ToolchainError(
            f"the toolchain {toolchain.name} could not be installed",
            f"{phase} failed: {_reason(lines, child.returncode)}",
            "Where no index can be reached, fill a folder elsewhere with `pip download --no-deps --dest DIR "
            f"--requirement {toolchain.lock}` and run `triton-unified toolchain install {toolchain.name} "
            "--wheelhouse DIR`",
        )


def _wait(child: subprocess.Popen[bytes], report: Callable[[], None]) -> None:
    while True:
        try:
            child.wait(_REPORT_SECONDS)
            return
        except subprocess.TimeoutExpired:
            report()


def _reason(lines: Sequence[str], code: int) -> str:
    """The last lines that say what went wrong.

    Where pip reaches no index, its errors speak of a version that is not there: why is in its warnings.
    """
    broken = [match[1] or match[2] for line in lines if (match := _BROKEN_CONNECTION.search(line))]
    errors = [line for line in lines if line.lower().startswith("error") or "Error:" in line]
    said = [*(f"no connection to the index ({why})" for why in broken[:1]), *(errors or list(lines))[-2:]]
    return " ".join(said)[-600:] or f"it ended with {code}"


def _changed(record: Path) -> list[str]:
    """Files of one package that are not what was installed."""
    packages = record.parent.parent
    problems = []
    with record.open(newline="") as rows:
        for name, digest, _ in csv.reader(rows):
            if not digest.startswith("sha256="):
                continue  # RECORD itself, and byte code
            wanted = digest.removeprefix("sha256=")
            path = packages / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif _digest(path) != wanted:
                problems.append(f"{name} is not what was installed")
    return problems


def _digest(path: Path) -> str:
    """SHA-256 as RECORD writes it: URL-safe base64 without padding."""
    with path.open("rb") as file:
        return base64.urlsafe_b64encode(hashlib.file_digest(file, "sha256").digest()).rstrip(b"=").decode()
