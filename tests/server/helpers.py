"""Real Triton servers and the smallest models for them, for tests."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException
from unified_backend.server.find import Server, find_server
from unified_backend.server.options import Options
from unified_backend.server.preflight import free_ports
from unified_backend.server.run import RunningServer, start

LOCAL = "127.0.0.1"
SHM = Path("/dev/shm")
UNIFIED = 'backend: "unified"\n'
_METRIC = re.compile(r"(\w+)\{(.*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="(.*?)"')
_REFUSED_WITHIN = 60.0  # seconds; a second or less on a machine that does nothing else

# A model that needs nothing of ours: what is tested is the server.
DOUBLING_CONFIG = """
backend: "python"
input { name: "X" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] }
"""
DOUBLING = b"""
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() * 2 for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", tensor)]) for tensor in tensors]
"""
BROKEN = b"raise ValueError('broken on purpose')\n"


class Triton:
    """A running server with the repository it serves."""

    def __init__(self, running: RunningServer, repository: Path, log: Path) -> None:
        self.running = running
        self.repository = repository
        self.log = log
        self.url = running.options.url("http")
        self.grpc_url = running.options.url("grpc")
        self.metrics_url = f"http://{running.options.url('metrics')}/metrics"
        self.client = httpclient.InferenceServerClient(self.url, network_timeout=300.0, connection_timeout=120.0)

    def add_model(self, name: str, files: Mapping[str, bytes | Path], config: str | None = None) -> Path:
        """Write a model directory (`files` are relative to it, such as `1/model.onnx`) and return it."""
        return add_model(self.repository, name, files, config)

    def load(
        self, name: str, config: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load or reload a model; raises tritonclient's InferenceServerException with the server's reason.

        Args:
            config: in place of the one in the repository.
            files: path inside the model directory -> content, in place of the repository's directory.
        """
        override = None if config is None else json.dumps(config)
        content = {f"file:{path}": data for path, data in (files or {}).items()}
        self.client.load_model(name, config=override, files=content or None)

    def refusal_of(self, name: str) -> str:
        """Load a model by a client of its own, from any thread; the server's reason if it does not load, else ""."""
        with httpclient.InferenceServerClient(self.url, network_timeout=300.0, connection_timeout=30.0) as client:
            try:
                client.load_model(name)
            except InferenceServerException as error:
                return str(error)
        return ""

    def config(self, name: str) -> dict[str, Any]:
        """The completed config of a model that is loaded."""
        config: dict[str, Any] = self.client.get_model_config(name)
        return config

    @contextmanager
    def serving(self, name: str, files: Mapping[str, bytes | Path], config: str | None = UNIFIED) -> Iterator[str]:
        """A model that is loaded inside the `with`; yields its name, which begins with `name` and is nobody else's."""
        name = self._added(name, files, config)
        self.load(name)
        try:
            yield name
        finally:
            self.client.unload_model(name)

    def refusal(self, name: str, files: Mapping[str, bytes | Path], config: str | None = UNIFIED) -> str:
        """Why a model does not load; fails if it does, takes long, or the reason does not name model and version."""
        name = self._added(name, files, config)
        began = time.monotonic()
        with pytest.raises(InferenceServerException) as refused:
            self.load(name)
        assert time.monotonic() - began < _REFUSED_WITHIN
        message = str(refused.value)
        assert f"TritonModelException: {name}/1: " in message, message
        return message

    def _added(self, name: str, files: Mapping[str, bytes | Path], config: str | None) -> str:
        stem, dot, suffix = name.partition(".")
        name = f"{stem}_{next(_NUMBERS)}{dot}{suffix}"
        self.add_model(name, files, config)
        return name

    def unload(self, name: str) -> None:
        """Unload a model and wait until it is gone."""
        self.client.unload_model(name)
        wait_until(lambda: "unloaded" in self.reasons(name), 30, f"{name} to unload")

    def reasons(self, name: str) -> list[str]:
        """Why each version of a model is not ready; an empty string for one that is."""
        return [model.reason for model in self.running.models() if model.name == name]

    def infer(self, model: str, inputs: Mapping[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
        """Output name -> array."""
        return infer(self.client, model, inputs, **options)

    def metrics(self, model: str) -> dict[tuple[str, ...], float]:
        """What the metrics endpoint says of a model: (family, `label=value`, ...) -> sum over its instances.

        Labels are sorted; `model`, `version` and `pid` are left out.
        """
        with urllib.request.urlopen(self.metrics_url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        found: Counter[tuple[str, ...]] = Counter()
        for family, labels, value in (match.groups() for match in map(_METRIC.fullmatch, lines) if match):
            pairs = dict(_LABEL.findall(labels))
            pairs.pop("version", None)
            pairs.pop("pid", None)
            if pairs.pop("model", None) == model:
                found[family, *(f"{label}={pairs[label]}" for label in sorted(pairs))] += float(value)
        return dict(found)

    def log_text(self) -> str:
        """All that the server and its stubs have printed."""
        return self.log.read_text(errors="replace")


LIVE: list[Triton] = []
_NUMBERS = itertools.count(1)


@contextmanager
def start_server(
    repository: Path,
    environment: Mapping[str, str] | None = None,
    ready_within: float | None = 240.0,
    more: Sequence[str] = (),
    server: Server | None = None,
    **options: Any,
) -> Iterator[Triton]:
    """A server of a test's own; its log and its engine cache lie beside `repository`.

    Args:
        environment: added to the server's.
        ready_within: seconds; None does not wait.
        more: URLs of repositories that it serves too.
        server: which one; None for the one that `serve` would take.
        options: of `unified_backend.server.options.Options`, such as `model_control_mode` or `arguments`.
    """
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    log = repository.parent / f"triton-{ports['http_port']}.log"
    chosen = Options(
        **{
            "host": LOCAL,
            "log": log,
            "environment": {"TRITON_UNIFIED_CACHE": str(repository.parent / "cache"), **(environment or {})},
            **ports,
            **options,
        }
    )
    with start(server or find_server(), [repository, *more], chosen) as running, ExitStack() as cleanup:
        triton = Triton(running, repository, log)
        cleanup.callback(triton.client.close)
        LIVE.append(triton)
        cleanup.callback(LIVE.remove, triton)
        if ready_within is not None and not running.ready(ready_within):
            raise AssertionError(f"the server did not get ready:\n{triton.log_text()[-4000:]}")
        yield triton


def add_model(repository: Path, name: str, files: Mapping[str, bytes | Path], config: str | None = None) -> Path:
    """Write a model directory and return it; a `Path` among `files` is copied, file or folder."""
    folder = repository / name
    folder.mkdir(parents=True)
    for relative, content in files.items():
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        elif content.is_dir():
            shutil.copytree(content, target)
        else:
            shutil.copyfile(content, target)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    return folder


def add_doubling(repository: Path, name: str = "doubling") -> Path:
    """A model of Triton's own Python backend: Y = 2 X, [4]."""
    return add_model(repository, name, {"1/model.py": DOUBLING}, DOUBLING_CONFIG)


def add_broken(repository: Path, name: str = "broken") -> Path:
    """A model that fails to load."""
    return add_model(repository, name, {"1/model.py": BROKEN}, DOUBLING_CONFIG)


def doubling_onnx() -> bytes:
    """ONNX: Y = X + X, [N, 4]."""
    node = onnx.helper.make_node("Add", ["X", "X"], ["Y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "XY")
    graph = onnx.helper.make_graph([node], "doubling", [x], [y])
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def infer(
    client: httpclient.InferenceServerClient, model: str, inputs: Mapping[str, np.ndarray], **options: Any
) -> dict[str, np.ndarray]:
    """Output name -> array."""
    asked = []
    for name, array in inputs.items():
        tensor = httpclient.InferInput(name, list(array.shape), triton_type(array))
        tensor.set_data_from_numpy(array)
        asked.append(tensor)
    result = client.infer(model, asked, **options)
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def doubles(url: str, model: str = "doubling", shape: tuple[int, ...] = (4,)) -> bool:
    """Whether the server at `url` answers a doubling model's request, of four values in `shape`, rightly."""
    x = np.array([1, 2, 3, 4], np.float32).reshape(shape)
    with httpclient.InferenceServerClient(url) as client:
        y = infer(client, model, {"X": x})["Y"]
    return y.shape == shape and y.ravel().tolist() == [2, 4, 6, 8]


def mapped_files(server: int) -> set[str]:
    """Paths of the files that a server and its stubs have mapped into memory.

    Args:
        server: process id; stubs are in its process group.
    """
    found: set[str] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(entry.name)) == server:
                lines = (entry / "maps").read_text().splitlines()
                found.update(line[line.index("/") :] for line in lines if "/" in line)
    return found


def triton_type(array: np.ndarray) -> str:
    """Triton's name of an array's type, such as `FP32`."""
    return httpclient.np_to_triton_dtype(array.dtype)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll `condition`; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def command(*arguments: str | Path, **run: Any) -> subprocess.CompletedProcess[str]:
    """Run `triton-unified` to its end."""
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=60, **run)


COMMAND = Path(sys.executable).parent / "triton-unified"


class Serving:
    """`triton-unified serve` as a user runs it.

    Attributes:
        process: the command.
        http: `host:port` that its server listens on.
    """

    def __init__(self, folder: Path, *arguments: str | Path, server_arguments: tuple[str, ...] = ()) -> None:
        http, grpc, metrics = free_ports(3)
        self.http = f"{LOCAL}:{http}"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._output = folder / "serve.log"
        ports = ["--host", LOCAL, f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [COMMAND, "serve", *arguments, *ports, "--", *server_arguments],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.temporary), "TRITON_UNIFIED_CACHE": str(folder / "cache")},
            )

    def lines(self, start: str) -> list[str]:
        """What it printed that begins with `start`."""
        return [line for line in self.output().splitlines() if line.startswith(start)]

    def output(self) -> str:
        """All it printed, the server's log included."""
        return self._output.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Wait for its `ready:` line."""
        wait_until(lambda: bool(self.lines("ready:")), 60, f"the ready line in:\n{self.output()[-3000:]}")

    def shared_memory(self) -> list[Path]:
        """Regions that its server made and that still exist."""
        return list(SHM.glob(f"triton_unified_{self.process.pid}_*"))

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
