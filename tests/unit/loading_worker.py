"""Loads models in a process of its own, as any user and from any folder: `python loading_worker.py SPECIFICATION`."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from unified_backend import errors, loading, model_keys
from unified_backend.cache import Cache, making

INPUT = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)


def weights(seed: int, width: int = 40) -> list[np.ndarray]:
    """The two matrices of `write_model`."""
    chance = np.random.default_rng(seed)
    return [chance.standard_normal(shape).astype(np.float32) for shape in ((64, width), (width, 64))]


def write_model(folder: Path, seed: int = 0, external: str | None = None, unfit: bool = False) -> Path:
    """A model of about 20 KB in a version folder: Y = relu(X W) V, its numbers from `seed`; returns the folder.

    Args:
        external: the file beside it that holds W and V.
        unfit: list W among the inputs, as old exporters do, so that the cache gets a repaired copy.
    """
    initializers = [numpy_helper.from_array(array, name) for array, name in zip(weights(seed), ("W", "V"), strict=True)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in "XY")
    inputs = [x, helper.make_tensor_value_info("W", TensorProto.FLOAT, initializers[0].dims)] if unfit else [x]
    nodes = [
        helper.make_node("MatMul", ["X", "W"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "V"], ["Y"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [y], initializers)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    folder.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location=external, size_threshold=0)
    else:
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def answer(seed: int = 0) -> np.ndarray:
    """What the model of this seed makes of `INPUT`."""
    first, second = weights(seed)
    return np.maximum(INPUT @ first, 0) @ second


def config(**parameters: str) -> dict[str, Any]:
    """A config with these parameters, in this order."""
    return {"parameters": {name.replace("__", "."): {"string_value": value} for name, value in parameters.items()}}


def loaded(folder: Path, cache: Cache, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Load a model and ask it; what was found, what it answered, and what was logged as a warning."""
    with _warnings() as log:
        model = loading.load(loading.describe(f"{folder.parent.name}/1", folder, config or {}, cache), cache)
        got = model.runner.run({"X": INPUT}, ["Y"])[0]
    report = model.described.report
    return {"keys": report.entries, "lookups": report.lookups, "answer": got.tolist(), "log": log}


@contextlib.contextmanager
def _warnings() -> Any:
    log: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logging.getLogger("unified_backend").addHandler(listener)
    try:
        yield log
    finally:
        logging.getLogger("unified_backend").removeHandler(listener)


def _once(specification: Mapping[str, Any]) -> dict[str, Any]:
    """Load as a user whom the specification may name, with the cache of the environment."""
    if user := specification.get("user"):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Cache(Path(folder) / "cache") as cache:
            # Everything is imported now that may lie where the other user must not read.
            loaded(write_model(Path(folder) / "repository/first/1"), cache)
            onnx_version = model_keys._version("onnx", cache.store.memo)
        model_keys._version = lambda *_: onnx_version
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        tempfile.tempdir = None
    try:
        cache = loading.open_cache()
        found = loaded(Path(specification["folder"]), cache, specification.get("config"))
        return {**found, "root": str(cache.root)}
    except errors.UnifiedError as error:
        return {"error": str(error), "kind": type(error).__name__}


def _on_small_disks(specification: Mapping[str, Any]) -> dict[str, Any]:
    """Load with the cache on a disk of each size (KiB), then look what is left there, make room, and load again."""
    found = {}
    for size in specification["sizes"]:
        disk = Path(specification["disk"])
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
        try:
            first = _in_a_child(specification, disk)
            left = sorted(path.relative_to(disk / "cache").as_posix() for path in (disk / "cache/making").glob("*"))
            subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
            again = _in_a_child(specification, disk)
            found[size] = {"first": first, "left": left, "again": again}
        finally:
            subprocess.run(["umount", disk], check=True)
    return found


def _in_a_child(specification: Mapping[str, Any], disk: Path) -> dict[str, Any]:
    """What `loaded` finds in a process that ends, as a server's would, before anybody looks at the disk."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        status = 1
        try:
            if specification.get("temporary"):
                tempfile.tempdir = str(disk)
                making._SHARED_MEMORY = str(disk)
            with Cache(disk / "cache") as cache, os.fdopen(writer, "w") as report:
                report.write(json.dumps(loaded(Path(specification["folder"]), cache)))
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            atexit._run_exitfuncs()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as report:
        found = report.read()
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    return dict(json.loads(found))


def in_own_process(specification: Mapping[str, Any], before: str = "", **environment: str) -> dict[str, Any]:
    """Run this file; `before` is done by a shell in a mount and host-name namespace of its own."""
    command = [sys.executable, __file__, json.dumps(specification)]
    if before:
        command = ["unshare", "-m", "-u", "sh", "-ec", f'{before}\nexec "$@"', "sh", *command]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_UNIFIED")}
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def namespaces() -> bool:
    """Whether this user may mount things in a namespace of its own."""
    tried = shutil.which("unshare") and subprocess.run(
        ["unshare", "-m", "-u", "sh", "-ec", "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False
    )
    return bool(tried) and tried.returncode == 0


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(_on_small_disks(given) if "sizes" in given else _once(given)))
    sys.stdout.flush()
