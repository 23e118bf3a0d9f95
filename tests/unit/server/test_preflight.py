"""What is refused before a server starts: exit code 2, and a message that says what, why and what to do."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from unified_backend.errors import Refused
from unified_backend.server.find import find_server
from unified_backend.server.preflight import check_port, check_python, check_repository, resolved_repository

COMMAND = Path(sys.executable).parent / "triton-unified"


def serve(*arguments: str | Path, **run: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "serve", *arguments], capture_output=True, text=True, timeout=60, **run)  # type: ignore[call-overload]


def a_model(repository: Path) -> Path:
    (repository / "net.unified/1").mkdir(parents=True)
    return repository


def missing(folder: Path) -> Path:
    return folder / "nowhere"


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def empty(folder: Path) -> Path:
    (folder / ".cache/1").mkdir(parents=True)
    return folder


def a_model_itself(folder: Path) -> Path:
    return a_model(folder) / "net.unified"


def a_space(folder: Path) -> Path:
    return a_model(folder / "my models")


def a_space_in_a_model(folder: Path) -> Path:
    (folder / "my net/1").mkdir(parents=True)
    return folder


def a_quote(folder: Path) -> Path:
    return a_model(folder / "anna's")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (missing, "does not exist"),
        (a_file, "is a file"),
        (empty, "holds no model"),
        (a_model_itself, "is one model, not a repository"),
        (a_space, "holds a space"),
        (a_space_in_a_model, "holds a space"),
        (a_quote, 'holds "\'"'),
    ],
)
def test_repository_that_cannot_be_served_is_refused(tmp_path: Path, make: Callable[[Path], Path], what: str) -> None:
    with pytest.raises(Refused, match=what) as refusal:
        check_repository(str(make(tmp_path)), may_be_empty=False)
    assert refusal.value.exit_code == 2


def test_empty_repository_will_do_when_models_may_come_later(tmp_path: Path) -> None:
    check_repository(str(tmp_path), may_be_empty=True)


def test_model_by_config_alone_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble/config.pbtxt").touch()
    check_repository(str(tmp_path), may_be_empty=False)


@pytest.mark.parametrize("url", ["s3://bucket/models", "gs://bucket/models", "as://account/container"])
def test_object_stores_are_left_to_triton(url: str) -> None:
    assert resolved_repository(url) == url
    check_repository(url, may_be_empty=False)


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port", "--metrics-port"])
def test_busy_port_is_refused_by_its_flag(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port} is in use.*{flag}"):
            check_port("127.0.0.1", port, flag)


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Refused, match="no such address"):
        check_port("192.0.2.1", 8000, "--http-port")


def test_numpy_2_under_a_stub_that_corrupts_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy-2.1.0.dist-info").mkdir()
    (tmp_path / "numpy-2.1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    server = find_server()
    check_python(replace(server, corrupts_numpy2=False))
    with pytest.raises(Refused, match="wrong numbers"):
        check_python(replace(server, corrupts_numpy2=True))


def test_server_for_another_python_is_refused() -> None:
    with pytest.raises(Refused, match=r"built for Python 3\.8"):
        check_python(replace(find_server(), pythons=("3.8",)))


def test_command_exits_with_2_and_says_what_to_do(tmp_path: Path) -> None:
    run = serve(missing(tmp_path))
    assert run.returncode == 2
    assert "it does not exist" in run.stderr
    assert "A repository holds one folder a model" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--poll", "5", "--load-model", "net"], "--poll and --load-model contradict each other"),
        (["--", "--http-port=9000"], "--http-port cannot follow `--`"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, arguments: list[str], what: str) -> None:
    run = serve(a_model(tmp_path), *arguments)
    assert run.returncode == 2
    assert what in run.stderr
