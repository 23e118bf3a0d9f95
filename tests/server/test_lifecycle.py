"""Models come, change and go: versions, instances, reloads, overrides, polling, two servers on one cache, leaks."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import tritonclient.http as httpclient
import unified_backend
from helpers import SHM, UNIFIED, Serving, Triton, add_model, doubles, doubling_onnx, infer, start_server, wait_until
from models import parsed
from tritonclient.utils import InferenceServerException

ONE = np.ones((1, 4), np.float32)


def scaling(factor: float) -> bytes:
    """Y = factor X, [N, 4]; as many bytes for one factor as for another."""
    return parsed(
        f"g (float[N,4] X) => (float[N,4] Y) <float[1] w = {{{factor}}}> {{ Y = Mul (X, w) }}"
    ).SerializeToString()


def heavy(seed: int) -> bytes:
    """Y = X w, [N, 1024], with 4 MiB of weights: long enough in the making for others to come and wait."""
    model = parsed("g (float[N,1024] X, float[1024,1024] w) => (float[N,1024] Y) { Y = MatMul (X, w) }")
    del model.graph.input[1]
    weights = np.random.default_rng(seed).random((1024, 1024), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return model.SerializeToString()


def factor(triton: Triton, model: str, version: str = "") -> float:
    return float(triton.infer(model, {"X": ONE}, model_version=version)["Y"][0, 0])


def logged(triton: Triton, event: str, model: str) -> list[str]:
    """The backend's lines on an event of a model."""
    # Config completion writes to standard error, with the level in front; an instance to Triton's own log.
    wanted = (f"unified: {event} model={model}/", f"unified: INFO {event} model={model}/")
    return [line for line in triton.log_text().splitlines() if any(text in line for text in wanted)]


def engines(triton: Triton, model: str) -> list[str]:
    """`hit` or `made` for each instance that has loaded its engine."""
    found = (re.search(r" engine=(hit|made) ", line) for line in logged(triton, "loaded", model))
    return sorted(match[1] for match in found if match)


@pytest.mark.parametrize(
    ("policy", "served"),
    [("all {}", {"1": 2, "3": 5}), ("specific { versions: 1 }", {"1": 2}), ("latest { num_versions: 1 }", {"3": 5})],
    ids=["all", "specific", "latest"],
)
def test_versions_of_the_policy_are_served_each_with_its_own_weights(
    triton: Triton, policy: str, served: dict[str, float]
) -> None:
    files = {"1/m.onnx": scaling(2), "3/m.onnx": scaling(5)}
    with triton.serving("versions", files, f"{UNIFIED}version_policy {{ {policy} }}") as model:
        for version in ("1", "3"):
            if version in served:
                assert factor(triton, model, version) == served[version]
            else:
                with pytest.raises(InferenceServerException):
                    factor(triton, model, version)
        assert factor(triton, model) == served[max(served)]


def test_instances_share_one_conversion_and_one_engine(triton: Triton) -> None:
    config = UNIFIED + "instance_group { count: 3 kind: KIND_CPU }"
    with triton.serving("instances", {"1/m.onnx": heavy(1)}, config) as model:
        wait_until(lambda: len(engines(triton, model)) == 3, 10, "three instances to say how they loaded")
        assert engines(triton, model) == ["hit", "hit", "made"]
        [described] = logged(triton, "described", model)
        assert "canonical=made batching=made" in described
        assert all("canonical=hit batching=hit" in line for line in logged(triton, "loaded", model))


def test_model_updated_in_place_answers_with_the_new_weights(triton: Triton) -> None:
    with triton.serving("updated", {"1/m.onnx": scaling(2)}) as model:
        file = triton.repository / model / "1/m.onnx"
        assert factor(triton, model) == 2
        file.write_bytes(scaling(3))
        triton.load(model)
        assert factor(triton, model) == 3
        triton.unload(model)
        with pytest.raises(InferenceServerException):
            factor(triton, model)
        file.write_bytes(scaling(5))
        triton.load(model)
        assert factor(triton, model) == 5


def test_load_request_overrides_config_and_files_until_the_next(triton: Triton) -> None:
    with triton.serving("overridden", {"1/m.onnx": scaling(2)}) as model:
        triton.load(model, {"backend": "unified", "max_batch_size": 3})
        assert triton.config(model)["max_batch_size"] == 3
        assert factor(triton, model) == 2
        files = {"1/m.onnx": scaling(7), "2/other.name": scaling(8)}
        triton.load(model, {"backend": "unified", "version_policy": {"all": {}}}, files)
        assert [factor(triton, model, version) for version in ("1", "2")] == [7, 8]
        triton.load(model)
        assert triton.config(model)["max_batch_size"] == 32
        assert factor(triton, model) == 2


def test_polled_repository_gives_a_new_version_and_no_endless_reload(tmp_path: Path) -> None:
    folder = add_model(tmp_path / "models", "polled", {"1/m.onnx": scaling(2)}, UNIFIED)
    with start_server(tmp_path / "models", model_control_mode="poll", poll_seconds=1) as server:
        assert factor(server, "polled") == 2
        before = contents(folder)
        add_model(tmp_path, "new", {"m.onnx": scaling(3)}).rename(folder / "2")
        wait_until(lambda: "unloaded 'polled' version 1" in server.log_text(), 30, "version 2 to take over")
        assert factor(server, "polled") == 3
        time.sleep(2.5)  # twice the polling interval
        assert server.log_text().count("loading: polled:") == 2
        after = contents(folder)
        assert {path: after[path] for path in before} == before
        assert after.keys() - before.keys() == {"2", "2/m.onnx"}
        assert [path.name for path in server.repository.iterdir()] == ["polled"]


def test_two_servers_on_one_cache_build_once(tmp_path: Path) -> None:
    environment = {"TRITON_UNIFIED_CACHE": str(tmp_path / "shared")}
    config = UNIFIED + "instance_group { count: 2 kind: KIND_CPU }"
    with ThreadPoolExecutor(2) as threads, ExitStack() as stack:
        servers = []
        for name in ("one", "other"):
            repository = tmp_path / name / "models"
            add_model(repository, "heavy", {"1/m.onnx": heavy(2)}, config)
            servers.append(stack.enter_context(start_server(repository, environment, model_control_mode="explicit")))
        list(threads.map(lambda server: load(server, "heavy"), servers))
        answers = [server.infer("heavy", {"X": np.ones((1, 1024), np.float32)})["Y"] for server in servers]
        np.testing.assert_array_equal(*answers)
        wait_until(lambda: sum(len(engines(server, "heavy")) for server in servers) == 4, 10, "four instances")
        assert sorted(engines(servers[0], "heavy") + engines(servers[1], "heavy")) == ["hit", "hit", "hit", "made"]
        described = [line for server in servers for line in logged(server, "described", "heavy")]
        assert sorted("canonical=made" in line for line in described) == [False, True]
    for kind in ("canonical", "batching", "engine"):
        assert len(list((tmp_path / "shared/entries" / kind).glob("*/*"))) == 1
    assert not list((tmp_path / "shared/making").iterdir())


def test_entry_point_beside_a_model_works_with_the_python_backend(triton: Triton) -> None:
    entry_point = Path(unified_backend.__file__).parents[1] / "model.py"
    files = {"1/model.py": entry_point, "1/weights": scaling(9)}
    with triton.serving("beside", files, 'backend: "python"\n') as model:
        assert triton.config(model)["max_batch_size"] == 32
        assert factor(triton, model) == 9


def test_working_directory_full_of_traps_harms_nothing(tmp_path: Path) -> None:
    trap = "raise RuntimeError('the working directory was imported')\n"
    for name in ("model.py", "utils/__init__.py", "numpy/__init__.py", "onnx.py", "onnxruntime.py", "settings.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(trap)
    add_model(tmp_path / "models", "doubling", {"1/m.onnx": doubling_onnx()}, UNIFIED)
    with Serving(tmp_path, "models") as serving:
        serving.wait_ready()
        assert doubles(serving.http, shape=(1, 4))


MODELS = 5
# Its output is large enough to be written in place, in shared memory that has to go with its model.
ROW = np.ones((1, 300_000), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounds", "arguments"), [(1, ()), (7, ("--disable-auto-complete-config",))], ids=["completed", "written"]
)
def test_fifty_reloads_leak_nothing(tmp_path: Path, rounds: int, arguments: tuple[str, ...]) -> None:
    """Five models at a time; most of the fifty without config completion, which is half of a reload's time."""
    wide = parsed("g (float[N,W] X) => (float[N,W] Y) { Y = Add (X, X) }").SerializeToString()
    names = [f"wide{number}" for number in range(MODELS)]
    for name in names:
        add_model(tmp_path / "models", name, {"1/m.onnx": wide}, UNIFIED)
    (tmp_path / "tmp").mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp")}
    with (
        start_server(tmp_path / "models", environment, model_control_mode="explicit", arguments=arguments) as server,
        ThreadPoolExecutor(MODELS) as threads,
    ):
        list(threads.map(lambda name: load_and_use(server, name, 2), names))
        # The allocator of the server settles in two or three turns (62, 75, 77, 76 MB ... over a hundred reloads).
        for turn in range(2):
            list(threads.map(lambda name, size=20 + turn: load_and_use(server, name, size), names))
        early = settled_footprint(server, tmp_path)
        for turn in range(rounds):
            list(threads.map(lambda name, size=4 + turn: load_and_use(server, name, size), names))
        late = settled_footprint(server, tmp_path)
        assert late.pop("server bytes") < early.pop("server bytes") + (16 << 20)
        assert late.pop("handles") <= early.pop("handles") + MODELS
        # What a region grows to depends on how requests happen to follow one another.
        assert late.pop("shared bytes") <= early.pop("shared bytes") + 2 * MODELS * ROW.nbytes
        assert late == early
        for name in names:
            server.client.unload_model(name)
        wait_until(lambda: not stubs(server), 30, "the stubs to end")
        assert not regions(server)
        assert not list((tmp_path / "tmp").iterdir())


def load_and_use(server: Triton, model: str, max_batch_size: int) -> None:
    """Load with a config of its own, or Triton would find nothing changed, and have two large answers."""
    tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
    config = {
        "backend": "unified",
        "max_batch_size": max_batch_size,
        "input": [{"name": "X", **tensor}],
        "output": [{"name": "Y", **tensor}],
    }
    load(server, model, config)
    with httpclient.InferenceServerClient(server.url) as client:
        for _ in range(2):
            assert infer(client, model, {"X": ROW})["Y"][0, -1] == 2


def load(server: Triton, model: str, config: dict[str, Any] | None = None) -> None:
    """Load from a thread; a client of tritonclient is one thread's own."""
    with httpclient.InferenceServerClient(server.url, network_timeout=120.0, connection_timeout=120.0) as client:
        client.load_model(model, config=None if config is None else json.dumps(config))


def settled_footprint(server: Triton, folder: Path) -> dict[str, int]:
    """What the server holds once the former loads of its models are gone."""
    wait_until(lambda: len(stubs(server)) == len(regions(server)) == MODELS, 60, "the former stubs to end")
    process = psutil.Process(server.running.pid)
    return {
        "server bytes": process.memory_info().rss,
        "handles": process.num_fds(),
        "shared bytes": sum(region.stat().st_blocks for region in regions(server)) * 512,
        "temporary files": len(list((folder / "tmp").rglob("*"))),
        # All but the memo, which knows a file only once it has not changed for two seconds.
        "cached files": sum(path.is_file() for path in (folder / "cache").rglob("*") if "memo" not in path.parts),
    }


def stubs(server: Triton) -> list[psutil.Process]:
    return psutil.Process(server.running.pid).children(recursive=True)


def regions(server: Triton) -> list[Path]:
    """The server's entries in /dev/shm."""
    command = " ".join(psutil.Process(server.running.pid).cmdline())
    return list(SHM.glob(command.partition("shm-region-prefix-name=")[2].split()[0] + "*"))


def contents(folder: Path) -> dict[str, int]:
    """Every path below a folder with the time of its last change."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}
