"""Conversions on a real server that end badly: over a limit, asked for nonsense, or together with their server."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import made_models
import numpy as np
import pytest
import real_models
import tensorflow_models
from helpers import UNIFIED, Triton, start_server, wait_until
from unified_backend.cache import Cache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAVED_MODEL = "saved_models/icassp_2022/nmp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a repository and a cache."""
    folder = tmp_path_factory.mktemp("conversion")
    (folder / "models").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Triton]:
    with start_server(
        folder / "models", made_models.toolchain_environment("tensorflow"), model_control_mode="explicit"
    ) as server:
        yield server


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


def workers(cache: Path) -> list[int]:
    """Processes that convert for this cache: they work in a folder of it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(cache):
                found.append(int(entry.name))
    return found


def test_a_conversion_over_its_memory_fails_alone_and_says_so(server: Triton):
    """Another one runs beside it, and is served."""
    only = parameter("engine", "onnxruntime")
    pitch = real_models.path("basic-pitch", SAVED_MODEL)
    server.add_model("large", {"1/nmp": pitch}, UNIFIED + only + parameter("conversion_memory", "200MB"))
    server.add_model("sound", {"1/net.pb": tensorflow_models.path("frozen.pb")}, UNIFIED + only)
    with ThreadPoolExecutor(2) as pool:
        large, sound = pool.map(server.refusal_of, ["large", "sound"])
    assert "TritonModelException: large/1: " in large
    assert "200 MB are allowed" in large
    assert sound == ""
    assert server.infer("sound", {"image": np.zeros((2, 16, 16, 3), np.float32)})["probabilities"].shape == (2, 5)
    assert workers(server.repository.parent / "cache") == []


def test_an_option_that_the_converter_has_not_got_is_refused_with_those_it_has(server: Triton):
    config = UNIFIED + parameter("converter", '{\\"large_modle\\": true}')
    message = server.refusal("pitch", {"1/nmp": real_models.path("basic-pitch", SAVED_MODEL)}, config)
    assert "large_modle" in message
    assert "large_model" in message.replace("large_modle", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_conversion_ends_with_its_server(tmp_path: Path):
    """Asked to end, Triton waits for what is being loaded; killed, as by a supervisor after that, it takes it along."""
    (tmp_path / "models").mkdir()
    environment = made_models.toolchain_environment("tensorflow")
    with start_server(tmp_path / "models", environment, model_control_mode="explicit") as server:
        server.add_model("pitch", {"1/nmp": real_models.path("basic-pitch", SAVED_MODEL)}, UNIFIED)
        threading.Thread(target=server.refusal_of, args=["pitch"], daemon=True).start()  # it may never be answered
        wait_until(lambda: workers(tmp_path / "cache"), 60, "the conversion to start")
        server.running.process.send_signal(signal.SIGKILL)
        wait_until(lambda: not workers(tmp_path / "cache"), 20, "the conversion to end")
    assert "conversion" not in {entry.manifest.key.kind for entry in Cache(tmp_path / "cache").store.entries()}


def test_without_a_route_to_an_index_what_needs_a_toolchain_says_so_and_the_rest_is_served(tmp_path: Path):
    (tmp_path / "models").mkdir()
    nowhere = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    missing = {"TRITON_UNIFIED_TOOLCHAINS": "auto", "TRITON_UNIFIED_TOOLCHAIN_DIR": str(tmp_path / "none")}
    with start_server(tmp_path / "models", {**missing, **nowhere}, model_control_mode="explicit") as server:
        message = server.refusal("keras", {"1/net.keras": tensorflow_models.path("classifier.keras")})
        assert "no connection to the index" in message
        assert "--wheelhouse" in message
        assert "waiting model=keras_" in server.log_text()
        with server.serving("lstm", {"1/lstm": tensorflow_models.path("lstm")}) as model:
            assert server.config(model)["max_batch_size"] == 32
