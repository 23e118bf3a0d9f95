"""Which Triton server this machine has, and what one must know before starting it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unified_backend.errors import ServerError

__all__ = ["STUB", "Server", "find_server", "running_python", "shared_libpython", "stub_minor", "stub_takes_numpy2"]

Origin = Literal["path", "opt", "embedded"]

STUB = "triton_python_backend_stub"

_OPT = Path("/opt/tritonserver")


@dataclass(frozen=True)
class Server:
    """A Triton server on this machine.

    Attributes:
        executable: the `tritonserver` binary.
        backends: its own backends directory, the one that holds `python/`.
        origin: `path` (on PATH or named by the user), `opt` (Triton's container) or `embedded` (the pytriton wheel).
        stub: the Python backend's stub that the running Python can use; None if there is none.
        pythons: minor versions such as `3.11` that its stubs can run.
        corrupts_numpy2: its stub returns silently wrong tensors under NumPy 2 (Triton before 24.11).
        libraries: directories that go first on LD_LIBRARY_PATH.
        caches: its response-cache directory, when that is not where Triton looks by itself.
    """

    executable: Path
    backends: Path
    origin: Origin
    stub: Path | None
    pythons: tuple[str, ...]
    corrupts_numpy2: bool
    libraries: tuple[Path, ...] = ()
    caches: Path | None = None

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with what this server needs so that it starts and its stubs run the Python that runs now."""
        environment = dict(base)
        # The stub asks PATH, not the environment it was started from, which Python it is.
        environment["PATH"] = _joined([Path(sys.prefix) / "bin"], base.get("PATH", os.defpath))
        if self.libraries:
            environment["LD_LIBRARY_PATH"] = _joined(self.libraries, base.get("LD_LIBRARY_PATH", ""))
        return environment


def find_server(executable: Path | None = None) -> Server:
    """The server to use: the one named, else on PATH, else in /opt/tritonserver, else inside the pytriton wheel.

    Args:
        executable: a `tritonserver` binary the user insists on.

    Raises:
        ServerError: there is none, or it has no Python backend.
    """
    embedded = _embedded_root()
    if executable is not None:
        if not (executable.is_file() and os.access(executable, os.X_OK)):
            raise ServerError(
                f"{executable} is not a Triton server",
                "it does not exist or cannot be executed",
                "Name the tritonserver binary, for example /opt/tritonserver/bin/tritonserver",
            )
        if embedded is not None and executable.resolve().is_relative_to(embedded):
            return _embedded(embedded)
        return _installed(executable.absolute(), "path")
    if found := shutil.which("tritonserver"):
        return _installed(Path(found).absolute(), "path")
    if (_OPT / "bin/tritonserver").is_file():
        return _installed(_OPT / "bin/tritonserver", "opt")
    if embedded is not None:
        return _embedded(embedded)
    raise ServerError(
        "no Triton server found",
        f"there is no tritonserver on PATH, none in {_OPT}, and nvidia-pytriton is not installed in {sys.prefix}",
        "Run `pip install 'triton-unified-backend[server]'`, or use Triton's container, or name a tritonserver binary",
    )


def running_python() -> str:
    """Minor version of the Python that runs now, such as `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def shared_libpython() -> Path | None:
    """The running Python's shared library, which a stub links; None if this Python was built without one."""
    name = str(sysconfig.get_config_var("INSTSONAME") or "")
    if ".so" not in name:
        return None
    # A relocated build (python-build-standalone) reports the LIBDIR of the machine that built it.
    folders = [Path(str(sysconfig.get_config_var("LIBDIR"))), Path(sys.base_prefix) / "lib"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def stub_minor(stub: Path) -> str | None:
    """Minor version of the Python that `stub` links, such as `3.11`; None if it does not say."""
    linked = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    return linked[1].decode() if linked else None


def stub_takes_numpy2(stub: Path) -> bool:
    """Whether `stub` was built by a pybind11 that knows NumPy 2 (2.12 on, in Triton since 24.11).

    Read from the binary, because only a container says which Triton it is: NumPy 2 renamed `numpy.core`, and only a
    binary that knows so holds the new name.
    """
    return b"numpy._core" in stub.read_bytes()


def _installed(executable: Path, origin: Origin) -> Server:
    """A server laid out as Triton's builds are: `bin/tritonserver` beside `backends/`."""
    candidates = [executable.resolve().parent.parent / "backends", _OPT / "backends"]
    backends = next((folder for folder in candidates if (folder / "python").is_dir()), None)
    if backends is None:
        raise ServerError(
            f"{executable} has no Python backend",
            f"no `python` in {' or '.join(map(str, candidates))}",
            "Use a Triton build that includes the Python backend, such as the `-py3` container",
        )
    stub = backends / "python" / STUB
    minor = stub_minor(stub) if stub.is_file() else None
    return Server(
        executable=executable,
        backends=backends,
        origin=origin,
        stub=stub if stub.is_file() and minor in (None, running_python()) else None,
        pythons=(minor,) if minor else (),
        corrupts_numpy2=stub.is_file() and not stub_takes_numpy2(stub),
    )


def _embedded(root: Path) -> Server:
    """The server inside the pytriton wheel, which keeps one stub a Python version outside its backends directory."""
    stubs = root / "python_backend_stubs"
    stub = stubs / running_python() / STUB
    libpython = shared_libpython()
    libraries = [root.parent.parent / "nvidia_pytriton.libs", *([libpython.parent] if libpython else [])]
    return Server(
        executable=root / "bin/tritonserver",
        backends=root / "backends",
        origin="embedded",
        stub=stub if stub.is_file() else None,
        pythons=tuple(sorted((folder.name for folder in stubs.iterdir()), key=_version)),
        corrupts_numpy2=stub.is_file() and not stub_takes_numpy2(stub),
        libraries=tuple(libraries),
        caches=root / "caches",
    )


def _embedded_root() -> Path | None:
    # Found, not imported: importing pytriton takes seconds and starts threads.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0]).resolve() / "tritonserver"
    return root if (root / "bin/tritonserver").is_file() else None


def _version(minor: str) -> tuple[int, ...]:
    return tuple(int(part) for part in minor.split(".") if part.isdigit())


def _joined(folders: tuple[Path, ...] | list[Path], rest: str) -> str:
    return os.pathsep.join([*map(str, folders), *([rest] if rest else [])])
