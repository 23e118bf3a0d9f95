"""The installed backend, run by a plain `tritonserver` command that knows nothing of this package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.http as httpclient
from helpers import LOCAL, add_model, command, doubles, doubling_onnx, free_ports, wait_until
from unified_backend.errors import Refused
from unified_backend.server.compose import composed_backends
from unified_backend.server.find import find_server
from unified_backend.server.install import install


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with what the backend needs but without the backend, so that only the installed code can be used."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / Path(sysconfig.get_path("stdlib")).name / "site-packages"
    # A path file inside the borrowed directory is not followed, and an editable install is one.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[Path]:
    """Backends directory of a Triton without this backend."""
    with composed_backends(find_server()) as composed:
        shutil.copytree(composed.backends / "python", tmp_path / "backends/python")
    yield tmp_path / "backends"


def test_plain_tritonserver_serves_with_the_installed_backend(
    tmp_path: Path, backends: Path, environment: Path
) -> None:
    run = command("install", "--backends", backends, "--python", environment)
    assert run.returncode == 0, run.stderr
    assert str(backends / "unified") in run.stdout

    add_model(tmp_path / "models", "doubling", {"1/model.bin": doubling_onnx()}, 'backend: "unified"\n')
    http, grpc, metrics = free_ports(3)
    server = find_server()
    plain = {"PATH": "/usr/bin:/bin", "TRITON_UNIFIED_CACHE": str(tmp_path / "cache")}
    plain["LD_LIBRARY_PATH"] = server.environment(plain).get("LD_LIBRARY_PATH", "")
    arguments = [f"--model-repository={tmp_path / 'models'}", f"--backend-directory={backends}"]
    for service, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        arguments += [f"--{service}-address={LOCAL}", f"--{service}-port={port}"]
    log = tmp_path / "triton.log"
    with log.open("wb") as output:
        triton = subprocess.Popen(
            [server.executable, *arguments], env=plain, stdout=output, stderr=output, cwd=tmp_path
        )
    try:
        wait_until(lambda: triton.poll() is not None or _ready(f"{LOCAL}:{http}"), 60, "tritonserver")
        assert triton.poll() is None, log.read_text(errors="replace")[-6000:]
        assert doubles(f"{LOCAL}:{http}", shape=(1, 4))
    finally:
        triton.terminate()
        assert triton.wait(40) is not None


def test_uninstall_leaves_the_directory_as_it_was(backends: Path) -> None:
    before = sorted(backends.rglob("*"))
    install(backends, link=True)
    assert command("uninstall", "--backends", backends).returncode == 0
    assert sorted(backends.rglob("*")) == before


def test_another_minor_version_than_the_stubs_is_refused(backends: Path, tmp_path: Path) -> None:
    other = tmp_path / "venv"
    venv.create(other, symlinks=True)
    stub = backends / "python/triton_python_backend_stub"
    mine = f"libpython3.{sys.version_info.minor}.so".encode()
    stub.write_bytes(stub.read_bytes().replace(mine, b"libpython3.99.so"[: len(mine)].ljust(len(mine), b"\0")))
    with pytest.raises(Refused, match=r"runs Python 3\.99"):
        install(backends, python=other)
    assert not (backends / "unified").exists()


def _ready(url: str) -> bool:
    try:
        with httpclient.InferenceServerClient(url) as client:
            return client.is_server_ready()
    except OSError:
        return False
