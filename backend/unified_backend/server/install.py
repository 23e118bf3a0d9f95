"""Puts this backend into a Triton's backends directory, and takes it out again."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import unified_backend
from unified_backend.errors import Refused, ServerError
from unified_backend.server.find import STUB, running_python, stub_minor, stub_takes_numpy2
from unified_backend.server.preflight import check_path

__all__ = ["Installed", "install", "uninstall", "write_backend"]

NAME = "unified"
# Says that the folder is ours to replace or remove; Triton ignores it.
_MARK = "installed.json"
# Triton runs a Python-based backend in the environment of this name beside its model.py; a symbolic link to a venv
# serves as well as the archive it is named after.
_ENVIRONMENT = "pb_exec_env_model.py.tar.gz"
_NEEDED = ("numpy", "onnx", "onnxruntime", "filelock", "platformdirs")


@dataclass(frozen=True)
class Installed:
    """What an installation put where.

    Attributes:
        folder: `<backends>/unified`.
        python: the venv it runs in; None for the Python that Triton itself runs.
        linked: the code is a symbolic link to this package, not a copy.
        replaced: an earlier installation of ours was there.
    """

    folder: Path
    python: Path | None
    linked: bool
    replaced: bool


def install(backends: Path, python: Path | None = None, link: bool = False) -> Installed:
    """Put the backend into `backends`, in one rename: a Triton that loads a model meanwhile sees all of it or nothing.

    Args:
        backends: a Triton's backends directory, such as /opt/tritonserver/backends.
        python: venv directory that the backend runs in; None leaves it to the Python on Triton's PATH.
        link: symbolic links to this package instead of a copy, for development.

    Raises:
        Refused: the directory cannot take it, or the venv cannot run it.
    """
    backends = backends.absolute()
    _check_backends(backends)
    folder = backends / NAME
    replaced = folder.is_symlink() or folder.exists()
    if replaced:
        _check_ours(folder)
    if python is not None:
        python = python.absolute()
        _check_environment(python, backends / "python" / STUB)
    aside = backends / f".{NAME}-{secrets.token_hex(4)}"
    try:
        write_backend(aside, link)
        if python is not None:
            (aside / _ENVIRONMENT).symlink_to(python)
        (aside / _MARK).write_text(_mark(python, link))
        _swap(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # gone already, unless something failed
    return Installed(folder, python, link, replaced)


def uninstall(backends: Path) -> Path:
    """Take the backend out of `backends`; returns the folder that is gone.

    Raises:
        Refused: it is not there, or what is there is not ours.
    """
    folder = backends.absolute() / NAME
    if not folder.is_dir():
        raise Refused(
            f"{folder} does not exist", "the backend is not installed there", "Name the directory with --backends"
        )
    _check_ours(folder)
    _check_writable(folder.parent)
    # Renamed first, so that a Triton never meets half of it.
    aside = folder.with_name(f".{NAME}-{secrets.token_hex(4)}")
    folder.rename(aside)
    shutil.rmtree(aside)
    return folder


def write_backend(folder: Path, link: bool) -> None:
    """Make `folder` (which must not exist) a Python-based backend: `model.py` and the package beside it."""
    package = Path(unified_backend.__file__).resolve().parent
    folder.mkdir()
    if link:
        (folder / "model.py").symlink_to(_entry_point(package))
        (folder / package.name).symlink_to(package)
        return
    shutil.copyfile(_entry_point(package), folder / "model.py")
    # A wheel keeps its entry point inside the package: there it would be a second, stale one.
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "model.py"))


def _entry_point(package: Path) -> Path:
    # Beside the package in a checkout, inside it in a wheel.
    candidates = (package / "model.py", package.parent / "model.py")
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise ServerError(
            "this installation of triton-unified-backend is not complete",
            f"{candidates[0]} is missing",
            "Install the package again",
        )
    return found


def _swap(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, putting what was there back if that fails."""
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.with_name(f".{NAME}-{secrets.token_hex(4)}")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _mark(python: Path | None, link: bool) -> str:
    version = unified_backend.__version__
    return (
        json.dumps({"by": "triton-unified", "version": version, "python": python and str(python), "link": link}) + "\n"
    )


def _check_backends(backends: Path) -> None:
    if not backends.is_dir():
        raise Refused(
            f"{backends} is not a backends directory",
            "it is a file" if backends.exists() else "it does not exist",
            "Name Triton's own, usually /opt/tritonserver/backends, or create the directory first",
        )
    check_path(backends, "backends directory")
    _check_writable(backends)


def _check_writable(backends: Path) -> None:
    if not os.access(backends, os.W_OK | os.X_OK):
        raise Refused(
            f"cannot write into {backends}",
            "this user has no permission",
            "Run as its owner, or give tritonserver a directory of your own with --backend-directory",
        )


def _check_ours(folder: Path) -> None:
    if folder.is_symlink() or not (folder / _MARK).is_file():
        raise Refused(
            f"{folder} was not put there by triton-unified",
            f"it has no {_MARK}",
            "Move it away, or name another directory with --backends",
        )


def _check_environment(venv: Path, stub: Path) -> None:
    """Refuse a venv that `stub` (of the Triton that the backend is installed in, if there is one) could not run."""
    interpreter = venv / "bin/python"
    if not ((venv / "pyvenv.cfg").is_file() and (venv / "bin/activate").is_file() and interpreter.exists()):
        raise Refused(
            f"{venv} is not a virtual environment",
            "a venv holds pyvenv.cfg, bin/activate and bin/python",
            f"Make one with `python{running_python()} -m venv DIR` and install triton-unified-backend in it",
        )
    check_path(venv, "virtual environment")
    versions = _versions(interpreter)
    stub_python = stub_minor(stub) if stub.is_file() else None
    if stub_python and versions["python"] != stub_python:
        raise Refused(
            f"{venv} has Python {versions['python']}",
            f"the Python backend of this Triton, {stub}, runs Python {stub_python}",
            f"Make the environment with python{stub_python}",
        )
    if missing := [name for name in _NEEDED if not versions[name]]:
        raise Refused(
            f"{venv} cannot run the backend",
            f"it cannot import {', '.join(missing)}",
            f"Run `{interpreter} -m pip install 'triton-unified-backend[cpu]'` (or [gpu])",
        )
    if stub.is_file() and not stub_takes_numpy2(stub) and int(versions["numpy"].split(".")[0]) >= 2:
        raise Refused(
            f"{venv} has numpy {versions['numpy']}",
            f"{stub} was built before NumPy 2 and would return wrong numbers without a word",
            f"Run `{interpreter} -m pip install 'numpy<2'`, or use Triton 24.11 or newer",
        )


def _versions(interpreter: Path) -> dict[str, str]:
    """`python` and each needed module -> version; an empty string for a module that cannot be imported."""
    # -I: neither the current directory nor PYTHONPATH, which the stub does not see, may lend a module.
    run = subprocess.run([interpreter, "-I", "-c", _PROBE, *_NEEDED], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise Refused(
            f"{interpreter} does not run",
            (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1],
            "Make the virtual environment again",
        )
    versions: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return versions


_PROBE = """
import importlib, json, sys
versions = {"python": "%d.%d" % sys.version_info[:2]}
for name in sys.argv[1:]:
    try:
        versions[name] = str(getattr(importlib.import_module(name), "__version__", "?"))
    except Exception:
        versions[name] = ""
print(json.dumps(versions))
"""
