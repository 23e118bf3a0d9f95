"""Models that a script of the tests makes with a toolchain's own Python, once, kept in the user's cache directory."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path

import platformdirs
from filelock import FileLock
from unified_backend.toolchains import environment
from unified_backend.toolchains.catalogue import TOOLCHAINS

__all__ = ["folder_of", "model", "toolchain_environment", "toolchain_python"]

_CACHE = platformdirs.user_cache_path("triton-unified")


@functools.cache
def toolchain_python(name: str) -> Path:
    """The Python of a toolchain, which is installed into the user's cache directory if it is not there."""
    return environment.require(TOOLCHAINS[name], _CACHE / "toolchains", "auto", "tests")


def toolchain_environment(name: str) -> dict[str, str]:
    """Variables for a process that converts with that toolchain, whatever its cache is."""
    return {
        "TRITON_UNIFIED_TOOLCHAINS": "installed",
        "TRITON_UNIFIED_TOOLCHAIN_DIR": str(toolchain_python(name).parent.parent.parent),
    }


def model(folder: Path, name: str) -> Path:
    """A model of those in a folder; do not write to it, others use it too."""
    found = folder / name
    there = ", ".join(sorted(each.name for each in folder.iterdir()))
    assert found.exists(), f"there is no made model {name}, but {there}"
    return found


@functools.cache
def folder_of(script: Path, toolchain: str, *arguments: Path) -> Path:
    """The folder that a script makes, given its path and the arguments, in a toolchain's Python.

    It is made again when the script or the toolchain has changed.
    """
    digest = hashlib.sha256(script.read_bytes() + TOOLCHAINS[toolchain].digest.encode()).hexdigest()[:16]
    folder = _CACHE / "made-models"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / digest
    with FileLock(folder / f"{digest}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                command = [str(toolchain_python(toolchain)), str(script), f"{scratch}/made", *map(str, arguments)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"the models were not made: {done.stderr[-4000:]}"
                Path(scratch, "made").rename(target)
    return target
