"""Real servers that share an object store, or have their models in one."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import obstore
import onnx
import pytest
from helpers import LOCAL, UNIFIED, Triton, add_model, doubles, infer, start_server, wait_until
from object_stores import Gate, ObjectStore
from obstore.store import S3Store
from onnx import TensorProto, helper
from unified_backend.cache.flight import being_made

KINDS = ("canonical", "batching", "engine", "plan")
ONE = np.ones((1, 4), np.float32)


def slow_to_optimise(side: int, products: int) -> bytes:
    """Y = X + X, [N, 4], beside a branch that no request takes and whose constants take long to fold."""
    x, y, slow, quick = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("X", "Y", "slow", "quick")
    )
    ones = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0 / side])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["c0"], value=ones)]
    nodes += [helper.make_node("MatMul", [f"c{number}", "c0"], [f"c{number + 1}"]) for number in range(products)]
    nodes += [helper.make_node("ReduceMean", [f"c{products}"], ["mean"], keepdims=0)]
    nodes += [helper.make_node("Mul", ["X", "mean"], ["slow"])]
    never = helper.make_graph(nodes, "never", [], [slow])
    always = helper.make_graph([helper.make_node("Add", ["X", "X"], ["quick"])], "always", [], [quick])
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["X"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "limit"], ["condition"]),
            helper.make_node("If", ["condition"], ["Y"], then_branch=never, else_branch=always),
        ],
        "slow",
        [x],
        [y],
        [
            helper.make_tensor("shape", TensorProto.INT64, [2], [side, side]),
            helper.make_tensor("limit", TensorProto.FLOAT, [], [1e30]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def scaling(factor: float, size: int = 1) -> bytes:
    """Y = factor X, [N, 4], with so many bytes of weights that nobody reads; as long for one factor as for another."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "XY")
    weights = onnx.numpy_helper.from_array(np.full((size, 4), factor, np.float32), "weights")
    nodes = [
        helper.make_node("ReduceMax", ["weights"], ["factor"], keepdims=0),
        helper.make_node("Mul", ["X", "factor"], ["Y"]),
    ]
    graph = helper.make_graph(nodes, "scaling", [x], [y], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def origins(server: Triton, model: str = "") -> Counter[str]:
    """How often each kind of entry was `hit`, `pulled` or `made`, as the log says: `engine=made` -> times."""
    name = re.escape(model) or r"\w+"
    lines = re.findall(rf"unified: (?:INFO )?(?:described|loaded) model={name}/.*", server.log_text())
    return Counter(pair for line in lines for pair in re.findall(r"\b\w+=(?:hit|pulled|made)\b", line))


def warned_of_the_store(server: Triton) -> list[str]:
    lines = [line for line in server.log_text().splitlines() if "unified: " in line and "remote cache" in line]
    return [line for line in lines if line.startswith("W") or "unified: WARNING" in line]


def pushers(root: Path) -> list[int]:
    """Ids of the pushers of a cache."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"unified_backend.cache.push\0{root}\0" in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_three_servers_build_once_and_a_fourth_builds_alone_when_the_store_is_gone(
    own_s3: ObjectStore, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    add_model(repository, "slow", {"1/model.onnx": slow_to_optimise(1900, 170)}, UNIFIED)
    remote = {**own_s3.environment, "TRITON_UNIFIED_REMOTE_CACHE": own_s3.url()}
    roots = [tmp_path / f"cache-{number}" for number in range(4)]
    environments = [{**remote, "TRITON_UNIFIED_CACHE": str(root)} for root in roots]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(start_server(repository, environment, ready_within=None))
            for environment in environments[:3]
        ]
        for server in servers:
            assert server.running.ready(240), server.log_text()[-4000:]
            assert doubles(server.url, "slow", (1, 4))
        found = sum((origins(server) for server in servers), Counter())
        assert {kind: (found[f"{kind}=made"], found[f"{kind}=pulled"]) for kind in KINDS} == dict.fromkeys(
            KINDS, (1, 2)
        )
        assert not [line for server in servers for line in warned_of_the_store(server)]
        builder = next(server for server in servers if origins(server)["engine=made"])
        assert phase(builder, "build_s") > 10  # else the others may have come too late to be made to wait
        waited = [server for server in servers if "unified: waiting kind=engine" in server.log_text()]
        assert len(waited) == 2
        wait_until(lambda: not any(map(pushers, roots)), 60, "the pushers to end")
        assert not zombies(servers)

    own_s3.stop()
    with start_server(repository, environments[3], ready_within=240) as alone:
        assert doubles(alone.url, "slow", (1, 4))
        assert [origins(alone)[f"{kind}=made"] for kind in KINDS] == [1, 1, 1, 1]
        assert len(warned_of_the_store(alone)) == 1, warned_of_the_store(alone)
        # What asked the store in vain, which is once for all.
        assert phase(alone, "describe_s") + phase(alone, "prove_s") < 20
    wait_until(lambda: not pushers(roots[3]), 60, "a pusher without a store to give up")


def phase(server: Triton, name: str) -> float:
    """Seconds of a phase, in the last line that names it."""
    return float(re.findall(rf"unified: .*\b{name}=([0-9.]+)", server.log_text())[-1])


def zombies(servers: list[Triton]) -> list[str]:
    """Dead processes that nobody has reaped below these servers."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
            state, parent = rest.rpartition(") ")[2].split()[:2]
        except (OSError, ValueError):
            continue
        parents.setdefault(int(parent), []).append((int(pid), state))
    found, todo = [], [server.running.pid for server in servers]
    while todo:
        for pid, state in parents.get(todo.pop(), []):
            todo.append(pid)
            if state == "Z":
                found.append(str(pid))
    return found


def test_a_server_that_is_killed_leaves_a_pusher_that_ends_its_work(
    s3: ObjectStore, gate: Gate, tmp_path: Path
) -> None:
    repository, roots = tmp_path / "models", [tmp_path / "a", tmp_path / "b"]
    add_model(repository, "large", {"1/model.onnx": scaling(2, 3_000_000)}, UNIFIED)
    remote = {**s3.environment, "TRITON_UNIFIED_REMOTE_CACHE": s3.url()}
    config = {"graph_optimization": "none"}  # keeps the weights
    text = UNIFIED + "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in config.items()
    )
    (repository / "large" / "config.pbtxt").write_text(text)
    gate.limit(sent=20_000_000)
    through = {"AWS_ENDPOINT": f"http://{LOCAL}:{gate.port}", "TRITON_UNIFIED_CACHE": str(roots[0])}
    with start_server(repository, {**remote, **through}) as server:
        assert gate.shut.wait(60), server.log_text()
        assert pushers(roots[0])
        server.running.kill()
        server.running.wait(30)
        gate.open()
        wait_until(lambda: not pushers(roots[0]), 60, "the pusher to end")
    assert not being_made(roots[0] / "locks", "outbox")
    with start_server(repository, {**remote, "TRITON_UNIFIED_CACHE": str(roots[1])}) as server:
        assert doubles(server.url, "large", (1, 4))
        found = origins(server)
        assert found["engine=pulled"] == 1, found


def test_the_same_bytes_are_one_engine_wherever_they_come_from(s3: ObjectStore, tmp_path: Path) -> None:
    model = scaling(2)
    repository, path = tmp_path / "models", f"repository-{os.getpid()}"
    add_model(repository, "local", {"1/model.onnx": model}, UNIFIED)
    s3.url()  # makes the bucket
    store = S3Store(
        "bucket",
        endpoint=s3.endpoint,
        region="us-east-1",
        access_key_id=s3.environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=s3.environment["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )
    obstore.put(store, f"{path}/distant/config.pbtxt", UNIFIED.encode())
    obstore.put(store, f"{path}/distant/1/model.onnx", model)
    with start_server(
        repository, s3.environment, more=[f"s3://{s3.endpoint}/bucket/{path}"], model_control_mode="explicit"
    ) as server:
        server.load("local")
        assert origins(server, "local")["engine=made"] == 1
        server.load("distant")
        assert doubles(server.url, "distant", (1, 4))
        # Another config, or Triton takes the load for a change of instances and looks at no file.
        server.load("local", {"backend": "unified", "max_batch_size": 8}, {"1/another.onnx": model})
        assert doubles(server.url, "local", (1, 4))
        wait_until(lambda: origins(server, "local")["engine=hit"] == 1, 10, "the second load to be logged")
        for name in ("distant", "local"):
            assert origins(server, name)["engine=hit"] == 1
            assert origins(server, name)["canonical=hit"] >= 1
        assert origins(server)["engine=made"] == 1
        assert server.metrics("distant")["unified_cache_lookups_total", "kind=engine", "result=hit"] == 1


def test_models_that_differ_only_in_their_weights_share_nothing(triton: Triton) -> None:
    with (
        triton.serving("twin", {"1/model.onnx": scaling(11)}) as first,
        triton.serving("twin", {"1/model.onnx": scaling(13)}) as second,
    ):
        assert (factor(triton, first), factor(triton, second)) == (11, 13)
        for model in (first, second):
            wait_until(lambda model=model: origins(triton, model)["engine=made"] == 1, 10, f"{model} to be logged")
            assert origins(triton, model)["canonical=made"] == 1


def test_a_file_rewritten_with_its_size_and_time_put_back_answers_with_the_new_weights(triton: Triton) -> None:
    with triton.serving("rewritten", {"1/model.onnx": scaling(17)}) as model:
        file = triton.repository / model / "1" / "model.onnx"
        for new in (19.0, 23.0):
            before = file.stat()
            file.write_bytes(scaling(new))
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
            triton.unload(model)  # Triton itself goes by the times, and would not load it again
            triton.load(model)
            assert factor(triton, model) == new


def factor(server: Triton, model: str) -> float:
    return float(infer(server.client, model, {"X": ONE})["Y"][0, 0])
