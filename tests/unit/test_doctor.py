"""`triton-unified doctor`, in situations that are really bad: each is made, not mocked."""

from __future__ import annotations

import json
import mmap
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unified_backend.cli import app
from unified_backend.doctor import Finding, cache, examine, machine, python
from unified_backend.server.find import STUB, Server, running_python

Rows = dict[str, dict[str, str]]


@pytest.fixture(autouse=True)
def calm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place where nothing is wrong."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("TRITON_UNIFIED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models" / "detector.unified" / "1").mkdir(parents=True)
    return tmp_path / "models"


def run(*arguments: object) -> tuple[int, Rows]:
    """Exit code and rows of the command."""
    result = CliRunner().invoke(app, ["doctor", "--json", *map(str, arguments)])
    return result.exit_code, {row["check"]: row for row in json.loads(result.stdout)}


def test_a_good_place_has_no_failure(repository: Path, tmp_path: Path) -> None:
    code, rows = run("--repository", repository)
    assert code == 0
    assert {row["status"] for row in rows.values()} <= {"ok", "warning"}
    assert set(rows) >= {"server", "python", "numpy", "libpython", "gpu", "engine onnxruntime", "cache locks"}
    assert not (tmp_path / "cache").exists(), "doctor looks, and makes nothing"


def test_piped_output_is_one_line_a_check() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    lines = result.stdout.splitlines()
    assert all(line.startswith(("ok: ", "warning: ", "failed: ")) for line in lines)
    assert any(line.startswith("ok: cache place: ") for line in lines)


def test_a_space_in_the_repository_path_fails(repository: Path) -> None:
    spaced = repository.rename(repository.with_name("my models"))
    code, rows = run("--repository", spaced)
    assert code == 1
    assert rows["repository"]["status"] == "failed"
    assert "a space" in rows["repository"]["found"]
    assert rows["repository"]["do"]


def test_a_repository_that_is_not_there_fails(tmp_path: Path) -> None:
    code, rows = run("--repository", tmp_path / "nowhere")
    assert (code, rows["repository"]["status"]) == (1, "failed")


def test_a_hidden_folder_in_the_repository_fails(repository: Path) -> None:
    (repository / ".cache").mkdir()
    code, rows = run("--repository", repository)
    assert (code, rows["repository entries"]["status"]) == (1, "failed")
    assert ".cache" in rows["repository entries"]["found"]


def test_a_folder_without_a_version_fails(repository: Path) -> None:
    (repository / "notes" / "v1").mkdir(parents=True)
    code, rows = run("--repository", repository)
    assert (code, rows["repository entries"]["status"]) == (1, "failed")
    assert "notes" in rows["repository entries"]["found"]


def test_a_name_that_triton_claims_is_a_warning_until_the_config_names_the_backend(repository: Path) -> None:
    (repository / "detector.unified" / "1" / "model.onnx").touch()
    code, rows = run("--repository", repository)
    assert (code, rows["claimed names"]["status"]) == (0, "warning")
    (repository / "detector.unified" / "config.pbtxt").write_text('backend: "unified"\n')
    assert run("--repository", repository)[1]["claimed names"]["status"] == "ok"


def test_a_cache_inside_the_repository_fails(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_UNIFIED_CACHE", str(repository / ".cache"))
    code, rows = run("--repository", repository)
    assert (code, rows["cache place"]["status"]) == (1, "failed")
    assert "TRITON_UNIFIED_CACHE" in rows["cache place"]["do"]


def test_a_cache_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_UNIFIED_CACHE", str(tmp_path / "file" / "cache"))
    code, rows = run()
    assert (code, rows["cache writable"]["status"]) == (1, "failed")
    assert rows["cache locks"]["status"] == "warning"


def test_a_file_system_whose_locks_do_not_exclude_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.fcntl, "flock", lambda *_: None)  # as `nolock` mounts do: says yes, and locks nothing
    assert cache.check_locks(tmp_path).status == "warning"


@pytest.mark.parametrize(
    ("variable", "value", "check", "status", "found"),
    [
        ("TRITON_UNIFIED_CACHE_MAX_SIZE", "big", "cache settings", "failed", "20GB"),
        ("TRITON_UNIFIED_CACHE_KEY_FILE", "/nowhere/key.pem", "cache key", "failed", "No such file"),
        ("TRITON_UNIFIED_REMOTE_CACHE", "ftp://host/folder", "remote cache", "failed", "s3://"),
        ("TRITON_UNIFIED_REMOTE_CACHE", "s3://bucket/prefix", "remote cache", "warning", "cannot be reached"),
    ],
)
def test_what_a_fleet_shares_is_checked(
    variable: str, value: str, check: str, status: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = {"AWS_ENDPOINT": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, text in {**nobody, variable: value}.items():
        monkeypatch.setenv(name, text)
    code, rows = run()
    assert (code, rows[check]["status"]) == (int(status == "failed"), status)
    assert found in rows[check]["found"]


def test_a_key_and_a_store_that_work_are_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("a shared secret of some length")
    monkeypatch.setenv("TRITON_UNIFIED_CACHE_KEY_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("TRITON_UNIFIED_REMOTE_CACHE", str(tmp_path / "store"))
    code, rows = run()
    assert (code, rows["cache key"]["status"], rows["remote cache"]["status"]) == (0, "ok", "ok")


@pytest.mark.parametrize("shadow", ["model.py", "unified_backend/__init__.py", "json.py", "numpy/__init__.py"])
def test_a_working_directory_that_shadows_is_a_warning(shadow: str) -> None:
    Path(shadow).parent.mkdir(exist_ok=True)
    Path(shadow).touch()
    code, rows = run()
    assert (code, rows["working directory"]["status"]) == (0, "warning")
    assert shadow.split("/")[0].removesuffix(".py") in rows["working directory"]["found"]


def test_an_occupied_port_is_a_warning_that_names_the_option() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        finding = machine.check_default_port(listener.getsockname()[1], "--http-port")
    assert finding.status == "warning"
    assert "--http-port" in finding.do


@pytest.fixture
def region() -> Iterator[Path]:
    path = Path("/dev/shm") / f"triton_python_backend_shm_region_{secrets.token_hex(8)}"
    path.write_bytes(bytes(4096))
    yield path
    path.unlink()


def test_shared_memory_of_a_dead_server_is_found(region: Path) -> None:
    finding = machine.check_left_shared_memory()
    assert finding.status == "warning"
    assert "dead servers" in finding.found


def test_shared_memory_in_use_is_not_taken_for_left(region: Path) -> None:
    with region.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        finding = machine.check_left_shared_memory()
    assert region.name not in finding.found + finding.do


def test_missing_shared_memory_fails(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "shm").status == "failed"


def server(stub: Path | None, corrupts_numpy2: bool = True) -> Server:
    return Server(Path("tritonserver"), Path("backends"), "path", stub, ("3.8",), corrupts_numpy2)


def test_a_python_without_a_stub_fails() -> None:
    finding = python.check_python(server(stub=None))
    assert finding.status == "failed"
    assert "3.8" in finding.found


def test_numpy_2_on_an_old_stub_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python.importlib.metadata, "version", lambda _: "2.1.0")
    assert python.check_numpy(server(Path("stub"))).status == "failed"
    assert python.check_numpy(server(Path("stub"), corrupts_numpy2=False)).status == "ok"


def test_protobuf_without_its_compiled_code_is_warned_of() -> None:
    """Some packages set this variable for the whole process as they are imported, and what it starts has it too."""
    command = [Path(sys.executable).with_name("triton-unified"), "doctor", "--json"]
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    (row,) = [row for row in json.loads(done.stdout) if row["check"] == "protobuf"]
    assert row["status"] == "warning"
    assert "Unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION" in row["do"]


def test_no_server_fails_and_the_other_checks_go_on(tmp_path: Path) -> None:
    code, rows = run("--server", tmp_path / "tritonserver")
    assert (code, rows["server"]["status"]) == (1, "failed")
    assert "numpy" not in rows
    assert rows["cache writable"]["status"] == "ok"


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    """A backends directory whose stub links this Python's minor version, and whose backend runs in a real venv."""
    folder = tmp_path / "backends"
    (folder / "python").mkdir(parents=True)
    (folder / "python" / STUB).write_bytes(f"libpython{running_python()}.so.1.0".encode())
    (folder / "unified").mkdir()
    (folder / "unified" / "model.py").touch()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (folder / "unified" / "pb_exec_env_model.py.tar.gz").symlink_to(tmp_path / "venv")
    return folder


def test_an_installed_backend_is_found_in_its_environment(backends: Path) -> None:
    assert python.check_installation(backends).status == "ok"


def test_a_backend_whose_environment_is_gone_fails(backends: Path, tmp_path: Path) -> None:
    (tmp_path / "venv").rename(tmp_path / "moved")
    finding = python.check_installation(backends)
    assert finding.status == "failed"
    assert str(tmp_path / "venv") in finding.found


def test_an_environment_of_another_python_fails(backends: Path) -> None:
    (backends / "python" / STUB).write_bytes(b"libpython3.8.so.1.0")
    assert python.check_installation(backends).status == "failed"


def test_an_empty_backends_directory_fails(tmp_path: Path) -> None:
    code, rows = run("--backends", tmp_path)
    assert (code, rows["installation"]["status"]) == (1, "failed")


def test_perf_analyzer_that_does_not_start_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "perf_analyzer"
    broken.write_text("#!/bin/sh\necho 'libb64.so.0d: cannot open shared object file' >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(machine.sys, "prefix", str(tmp_path / "elsewhere"))
    finding = machine.check_perf_analyzer()
    assert finding.status == "warning"
    assert "libb64" in finding.found


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Finding:
        raise OSError("the disk is gone")

    monkeypatch.setattr(machine, "check_gpu", broken)
    rows = dict(examine())
    assert rows["gpu"].status == "failed"
    assert "the disk is gone" in rows["gpu"].found
    assert rows["cores"].status == "ok"
