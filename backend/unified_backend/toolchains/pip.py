"""pip: how it is called, each step of an installation with what it said when it failed, and folders of wheels."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from unified_backend import hosts
from unified_backend.errors import Refused, ToolchainError
from unified_backend.toolchains.catalogue import Toolchain

__all__ = ["OPTIONS", "check_wheelhouse", "pip_command", "run_step"]

logger = logging.getLogger(__name__)

# A route to nowhere is known after seconds; pip's own five retries of 15 s each are not worth waiting for.
OPTIONS = ("--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "15")
_BROKEN_CONNECTION = re.compile(r"connection broken by '(?:.*?(\[Errno [^)'\"]*|timed out)|(\w+))")
_REPORT_SECONDS = 10.0
_NAMED = 5  # packages in a message


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


def check_wheelhouse(toolchain: Toolchain, folder: Path) -> None:
    """
    Raises:
        Refused: the folder lacks packages that the toolchain is made of.
    """
    there = {_distribution(file.name) for file in folder.iterdir()}
    missing = [f"{name} {version}" for name, version in toolchain.pinned if _comparable(name, version) not in there]
    if not missing:
        return
    named = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} others" if len(missing) > _NAMED else "")
    raise Refused(
        f"{folder} has not got the wheels of the toolchain {toolchain.name}",
        f"there is none of {named}" if any(there) else "there are no wheels in it",
        _advice(toolchain, folder),
    )


def run_step(
    toolchain: Toolchain, phase: str, command: Sequence[str], began: float, wheelhouse: Path | None = None
) -> None:
    """Run one step; a line at its start and every ten seconds.

    Args:
        wheelhouse: the folder given in place of an index, for the way out.

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
            _advice(toolchain, wheelhouse),
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


def _advice(toolchain: Toolchain, wheelhouse: Path | None) -> str:
    """How a folder is filled and used."""
    folder = shlex.quote(str(wheelhouse)) if wheelhouse else "DIR"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    first = f"{toolchain.advice}. " if toolchain.advice else ""
    return first + (
        f"{'Fill it' if wheelhouse else 'Where no index can be reached, fill a folder'} elsewhere, with a Python "
        f"{python}: `pip download --no-deps --dest {folder} --requirement {toolchain.lock}`, and run "
        f"`triton-unified toolchain install {toolchain.name} --wheelhouse {folder}`"
    )


def _distribution(file: str) -> tuple[str, str] | None:
    """What a wheel or a source archive is of, as `_comparable` writes it."""
    if file.endswith(".whl") and file.count("-") >= 4:
        name, version = file.split("-")[:2]
    elif file.endswith((".tar.gz", ".zip")):
        name, _, version = file.removesuffix(".tar.gz").removesuffix(".zip").rpartition("-")
    else:
        return None
    return _comparable(name, version)


def _comparable(name: str, version: str) -> tuple[str, str]:
    """A name and a version in one spelling, of the several that there are."""
    parts = (part.lstrip("0") or "0" if part.isdecimal() else part for part in re.split(r"[._+-]", version.lower()))
    return re.sub(r"[-_.]+", "-", name).lower(), ".".join(parts)
