"""A private backends directory for one server run: the server's own backends and this package's code as it is now."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unified_backend.server.find import Server
from unified_backend.server.install import NAME, write_backend
from unified_backend.server.preflight import check_path

__all__ = ["Composed", "composed_backends"]


@dataclass(frozen=True)
class Composed:
    """Two directories that live as long as one server run.

    Attributes:
        backends: for `--backend-directory`.
        working: empty, to start the server in. The working directory comes first on a stub's `sys.path`: a `model.py`
            or a `numpy/` that lies in the user's would be imported instead of the real one.
    """

    backends: Path
    working: Path


@contextmanager
def composed_backends(server: Server) -> Iterator[Composed]:
    """Make the directory, and remove it at the end. `unified` is this package's, whatever `server` has installed."""
    root = Path(tempfile.mkdtemp(prefix="triton-unified-"))
    try:
        check_path(root, "temporary directory (TMPDIR)")
        composed = Composed(root / "backends", root / "working")
        composed.backends.mkdir()
        composed.working.mkdir()
        for backend in server.backends.iterdir():
            if backend.is_dir() and backend.name not in (NAME, "__pycache__") and not backend.name.startswith("."):
                _place(backend, composed.backends / backend.name, server.stub)
        write_backend(composed.backends / NAME, link=True)
        yield composed
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _place(backend: Path, target: Path, stub: Path | None) -> None:
    if backend.name != "python" or stub is None or stub.parent == backend:
        target.symlink_to(backend)
        return
    # The embedded server keeps its stubs elsewhere. The library is copied: core refuses a link to it as one that
    # "escapes backend directory" when it loads a Python-based backend.
    target.mkdir()
    shutil.copy2(backend / "libtriton_python.so", target)
    (target / "triton_python_backend_utils.py").symlink_to(backend / "triton_python_backend_utils.py")
    (target / stub.name).symlink_to(stub)
