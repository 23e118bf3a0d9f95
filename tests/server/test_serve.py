"""`triton-unified serve` against a real server: what a user sees, from the ready line to the exit code."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tritonclient.http as httpclient
from helpers import (
    DOUBLING,
    DOUBLING_CONFIG,
    LOCAL,
    Serving,
    Triton,
    add_broken,
    add_doubling,
    add_model,
    command,
    doubles,
    wait_until,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One good and three broken models, served from a directory full of traps, by a relative path."""
    folder = tmp_path_factory.mktemp("served")
    add_doubling(folder / "models")
    add_broken(folder / "models")
    add_model(folder / "models", "garbled", {"1/model.py": DOUBLING}, "input {{{")
    add_model(folder / "models", "versionless", {"model.py": DOUBLING}, DOUBLING_CONFIG)
    (folder / "model.py").write_text("raise RuntimeError('the working directory was imported')\n")
    (folder / "numpy").mkdir()
    (folder / "numpy/__init__.py").write_text("raise RuntimeError('the working directory was imported')\n")
    with Serving(folder, "models", server_arguments=("--id=passed-through",)) as serving:
        serving.wait_ready()
        yield serving


def test_ready_line_says_where_and_how_many(served: Serving) -> None:
    [line] = served.lines("ready:")
    assert f"http://{served.http}" in line
    assert "models_ready=1 models_failed=3" in line


def test_failed_model_is_named_with_its_reason(served: Serving) -> None:
    [line] = served.lines("failed: model=broken")
    assert "version=1" in line
    assert "broken on purpose" in line


@pytest.mark.parametrize("name", ["garbled", "versionless"])
def test_model_that_triton_does_not_even_try_is_named_too(served: Serving, name: str) -> None:
    [line] = served.lines(f"failed: model={name}")
    assert "its log" in line


def test_bad_model_stops_neither_readiness_nor_the_good_one(served: Serving) -> None:
    with httpclient.InferenceServerClient(served.http) as client:
        assert client.is_server_ready()
        assert not client.is_model_ready("broken")
    assert doubles(served.http)


def test_arguments_after_two_dashes_reach_tritonserver(served: Serving) -> None:
    with httpclient.InferenceServerClient(served.http) as client:
        assert client.get_server_metadata()["name"] == "passed-through"


def test_port_in_use_is_refused_by_name(served: Serving, tmp_path: Path) -> None:
    add_doubling(tmp_path / "models")
    port = served.http.partition(":")[2]
    run = command("serve", tmp_path / "models", "--host", LOCAL, "--http-port", port)
    assert run.returncode == 2
    assert f"port {port} is in use" in run.stderr
    assert "--http-port" in run.stderr


def test_interrupt_ends_the_server_cleanly(tmp_path: Path) -> None:
    add_doubling(tmp_path / "models")
    with Serving(tmp_path, "models") as serving:
        serving.wait_ready()
        family = psutil.Process(serving.process.pid).children(recursive=True)
        assert serving.shared_memory()
        serving.process.send_signal(signal.SIGINT)
        assert serving.process.wait(30) == 0
        assert not psutil.wait_procs(family, 5)[1]
        assert not serving.shared_memory()
        assert not list(serving.temporary.iterdir())


def test_second_signal_ends_a_server_that_hangs(tmp_path: Path) -> None:
    folder = add_doubling(tmp_path / "models")
    with (folder / "1/model.py").open("a") as model:
        model.write("    def finalize(self):\n        import time\n        time.sleep(60)\n")
    with Serving(tmp_path, "models") as serving:
        serving.wait_ready()
        family = psutil.Process(serving.process.pid).children(recursive=True)
        serving.process.terminate()
        serving.process.terminate()  # an echo of the first, as from `timeout`, is no second wish
        time.sleep(1.5)
        assert serving.process.poll() is None
        serving.process.terminate()
        assert serving.process.wait(10) == 128 + signal.SIGKILL
        assert not psutil.wait_procs(family, 5)[1]
        assert not serving.shared_memory()


def test_killed_server_leaves_nothing_and_its_exit_code_is_passed_on(tmp_path: Path) -> None:
    add_doubling(tmp_path / "models")
    with Serving(tmp_path, "models") as serving:
        serving.wait_ready()
        [server] = psutil.Process(serving.process.pid).children()
        stubs = server.children(recursive=True)
        # Stopped stubs cannot clean up after themselves, as after an out-of-memory kill of the whole group.
        for stub in stubs:
            stub.suspend()
        server.kill()
        assert serving.process.wait(20) == 128 + signal.SIGKILL
        assert not psutil.wait_procs(stubs, 5)[1]
        assert not serving.shared_memory()
        assert not list(serving.temporary.iterdir())


def test_killed_command_takes_its_server_along(tmp_path: Path) -> None:
    add_doubling(tmp_path / "models")
    with Serving(tmp_path, "models") as serving:
        serving.wait_ready()
        family = psutil.Process(serving.process.pid).children(recursive=True)
        serving.process.kill()
        assert not psutil.wait_procs(family, 20)[1]
        assert not serving.shared_memory()


def test_signal_while_models_load_is_heard(tmp_path: Path) -> None:
    folder = add_doubling(tmp_path / "models")
    with (folder / "1/model.py").open("a") as model:
        model.write("    def initialize(self, args):\n        import time\n        time.sleep(60)\n")
    with Serving(tmp_path, "models") as serving:
        wait_until(lambda: bool(serving.shared_memory()), 20, "the model to start loading")
        serving.process.send_signal(signal.SIGINT)
        # SIGTERM is what follows a SIGINT that Triton lost.
        assert serving.process.wait(20) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        wait_until(lambda: not serving.shared_memory(), 5, "its shared memory to go")


def test_models_come_and_go_under_explicit_control(triton: Triton) -> None:
    add_doubling(triton.repository, "coming")
    triton.load("coming")
    assert doubles(triton.url, "coming")
    triton.unload("coming")
    assert triton.reasons("coming") == ["unloaded"]


def test_users_flag_wins_over_the_default(tmp_path: Path) -> None:
    add_broken(tmp_path / "models")
    with Serving(tmp_path, "models", server_arguments=("--exit-on-error=true",)) as serving:
        assert serving.process.wait(30) == 1
        assert not serving.lines("ready:")
