"""Checks of the Triton server and of the Python that its stubs will run."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

from unified_backend.doctor.finding import Finding, failed, ok, refused, warning
from unified_backend.errors import ServerError
from unified_backend.server.find import STUB, Server, find_server, running_python, shared_libpython, stub_minor

__all__ = [
    "check_installation",
    "check_libpython",
    "check_numpy",
    "check_protobuf",
    "check_python",
    "check_server",
    "check_working_directory",
    "server_or_none",
]

# What a stub imports by name, beside the standard library, before or while it loads this backend.
_IMPORTED = {"model", "unified_backend", "triton_python_backend_utils", "c_python_backend_utils"}
_IMPORTED |= {"filelock", "google", "numpy", "onnx", "onnxruntime", "platformdirs", "tritonclient"}

_PROTOBUF = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"


def server_or_none(executable: Path | None) -> Server | None:
    """The server that `serve` would start; None where `check_server` says why there is none."""
    try:
        return find_server(executable)
    except ServerError:
        return None


def check_server(executable: Path | None) -> Finding:
    """Whether there is a Triton server with a Python backend."""
    try:
        server = find_server(executable)
    except ServerError as error:
        return refused(error)
    return ok(f"{server.executable} ({server.origin})")


def check_python(server: Server) -> Finding:
    """Whether the server has a stub for the Python that runs now: the minor versions must be equal."""
    here = running_python()
    if server.stub is None:
        return failed(
            f"Python {here}, and the server's stubs are for {', '.join(server.pythons) or 'none'}",
            "Install triton-unified-backend in an environment of a Python that the server has a stub for",
        )
    return ok(f"Python {here} in {sys.prefix}")


def check_numpy(server: Server) -> Finding:
    """Whether tensors come back right: a stub built before NumPy 2 returns wrong numbers under it, silently."""
    version = importlib.metadata.version("numpy")
    if server.corrupts_numpy2 and int(version.split(".")[0]) >= 2:
        return failed(
            f"NumPy {version}, and this server's stub was built before NumPy 2: wrong numbers without a word",
            "Run `pip install 'numpy<2'`, or use Triton 24.11 or newer",
        )
    return ok(f"NumPy {version}{', which must stay below 2 with this server' if server.corrupts_numpy2 else ''}")


def check_protobuf() -> Finding:
    """Whether compiled code reads models: Python alone takes fifty times as long."""
    from google.protobuf.internal import api_implementation

    if api_implementation.Type() == "python":
        chosen = os.environ.get(_PROTOBUF)
        return warning(
            f"protobuf runs in Python alone{f', as {_PROTOBUF}={chosen} asks' if chosen else ''}: reading a SavedModel "
            "takes fifty times as long",
            f"Unset {_PROTOBUF} for the server" if chosen else "Install protobuf's wheel for this machine",
        )
    return ok(f"protobuf {importlib.metadata.version('protobuf')}, compiled")


def check_libpython(server: Server) -> Finding:
    """Whether the shared libpython that a stub links can be found."""
    library = shared_libpython()
    if library is not None:
        return ok(str(library))
    do = f"Install the package libpython{running_python()}, or use a Python built with --enable-shared"
    found = f"this Python {running_python()} has no shared library, which the server's stub links"
    # A container brings the libpython of its own stub; the embedded server has nothing but this one.
    return failed(found, do) if server.origin == "embedded" else warning(found, do)


def check_working_directory(folder: Path) -> Finding:
    """Whether something in `folder` would be imported in place of what a stub means: its cwd comes first."""
    names = {entry.name.split(".")[0] for entry in folder.iterdir() if _importable(entry)}
    shadowing = sorted(names & (_IMPORTED | sys.stdlib_module_names))
    if shadowing:
        return warning(
            f"{folder} holds {', '.join(shadowing)}, which a stub would import in place of what it means",
            "Start tritonserver from another directory (`triton-unified serve` does so by itself)",
        )
    return ok(f"{folder} hides nothing that a stub imports")


def check_installation(backends: Path) -> Finding:
    """Whether the backend that `install` put into `backends` can run there."""
    folder = backends / "unified"
    if not (folder / "model.py").is_file():
        do = f"Run `triton-unified install --backends {backends}`"
        return failed(f"{folder} holds no backend", do)
    stub = backends / "python" / STUB
    if not stub.is_file():
        return failed(f"{stub} is missing, and a Python-based backend runs in it", "Name the backends of a -py3 Triton")
    wanted = stub_minor(stub)
    environment = folder / "pb_exec_env_model.py.tar.gz"
    if environment.is_symlink() or environment.exists():
        return _check_environment(environment, wanted)
    found = shutil.which("python3") or "no python3"
    if Path(found).parent != Path(sys.prefix) / "bin":
        return warning(
            f"the stub takes its Python from PATH, where it finds {found}, not that of {sys.prefix}",
            f"Put {sys.prefix}/bin first on the server's PATH, or install with `--python {sys.prefix}`",
        )
    return ok(f"{folder} runs in {sys.prefix}, first on PATH")


def _check_environment(environment: Path, wanted: str | None) -> Finding:
    venv = environment.resolve()
    if venv.is_file():
        return ok(f"the backend runs in the packed environment {venv}")
    again = "Make it again and run `triton-unified install --backends DIR --python VENV`"
    if not os.access(venv / "bin" / "python", os.X_OK):
        return failed(f"the backend's environment {venv} is gone, or has lost its Python", again)
    has = {path.name.removeprefix("python") for path in (venv / "lib").glob("python3.*")}
    if wanted is not None and wanted not in has:
        return failed(f"{venv} has Python {', '.join(sorted(has))}, and the server's stub runs {wanted}", again)
    return ok(f"the backend runs in {venv}, Python {wanted or ', '.join(sorted(has))}")


def _importable(entry: Path) -> bool:
    if entry.is_dir():
        # Without an __init__.py too it is a package, but only where no other of that name is found.
        return entry.name.isidentifier() and (entry / "__init__.py").is_file()
    return entry.suffix in (".py", ".pyc", ".so")
