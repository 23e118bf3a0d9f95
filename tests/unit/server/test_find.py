"""Which server is found, and what its files say about it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from unified_backend.errors import ServerError
from unified_backend.server.find import find_server, running_python, shared_libpython, stub_minor, stub_takes_numpy2

HERE = f"libpython{running_python()}.so.1.0".encode()


def triton_tree(root: Path, stub: bytes) -> Path:
    """Files laid out as a Triton build's; returns its executable."""
    python = root / "backends/python"
    python.mkdir(parents=True)
    (python / "triton_python_backend_stub").write_bytes(stub)
    executable = root / "bin/tritonserver"
    executable.parent.mkdir()
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    return executable


def test_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = triton_tree(tmp_path, HERE)
    monkeypatch.setenv("PATH", str(executable.parent), prepend=os.pathsep)
    server = find_server()
    assert (server.executable, server.origin) == (executable, "path")
    assert server.backends == tmp_path / "backends"
    assert server.pythons == (running_python(),)


def test_named_server_wins_over_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = triton_tree(tmp_path / "a", HERE)
    named = triton_tree(tmp_path / "b", HERE)
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=os.pathsep)
    assert find_server(named).executable == named


def test_embedded_server_is_found_without_importing_pytriton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    server = find_server()
    assert server.executable.is_file()
    assert running_python() in server.pythons
    assert "pytriton" not in sys.modules


def test_named_file_that_is_no_server_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="not a Triton server"):
        find_server(tmp_path / "missing")


def test_server_without_a_python_backend_is_an_error(tmp_path: Path) -> None:
    executable = triton_tree(tmp_path / "x", HERE)
    (tmp_path / "x/backends/python").rename(tmp_path / "x/backends/onnxruntime")
    with pytest.raises(ServerError, match="no Python backend"):
        find_server(executable)


def test_stub_of_another_python_is_not_offered(tmp_path: Path) -> None:
    server = find_server(triton_tree(tmp_path, b"\0libpython3.8.so.1.0\0"))
    assert server.stub is None
    assert server.pythons == ("3.8",)


@pytest.mark.parametrize(("content", "takes"), [(b"numpy.core.multiarray", False), (b"numpy.core\0numpy._core", True)])
def test_stub_says_whether_it_knows_numpy_2(tmp_path: Path, content: bytes, takes: bool) -> None:
    server = find_server(triton_tree(tmp_path, HERE + content))
    assert server.corrupts_numpy2 is not takes
    assert server.stub is not None
    assert stub_takes_numpy2(server.stub) is takes


def test_stub_that_names_no_python_fits_any(tmp_path: Path) -> None:
    server = find_server(triton_tree(tmp_path, b"statically linked"))
    assert server.stub is not None
    assert stub_minor(server.stub) is None


def test_environment_puts_this_python_first_and_keeps_the_rest() -> None:
    server = find_server()
    environment = server.environment({"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/opt/lib", "KEPT": "1"})
    assert environment["PATH"] == f"{Path(sys.prefix) / 'bin'}{os.pathsep}/usr/bin"
    assert environment["LD_LIBRARY_PATH"].endswith("/opt/lib")
    assert environment["KEPT"] == "1"
    if server.origin == "embedded":
        library = shared_libpython()
        assert library is not None
        assert str(library.parent) in environment["LD_LIBRARY_PATH"].split(os.pathsep)
