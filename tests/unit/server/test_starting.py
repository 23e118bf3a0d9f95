"""How a server's process is started: with an executable in Triton's place that only says how it was."""

from __future__ import annotations

import ast
import signal
import socket
import subprocess
import sys
from pathlib import Path

from test_find import HERE, triton_tree

# A program of its own, as `bench` and `tune` are: gRPC's threads stay until the end.
STARTS = """
import sys
from pathlib import Path
import tritonclient.grpc
from unified_backend.server.find import find_server
from unified_backend.server.options import Options
from unified_backend.server.run import start

executable, repository, port, log = sys.argv[1:]
client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
try:
    client.is_server_live(client_timeout=0.5)
except tritonclient.utils.InferenceServerException:
    pass
server = find_server(Path(executable))
options = Options(host="127.0.0.1", http_port=0, grpc_port=0, metrics_port=0, log=Path(log))
said = set()
for _ in range(100):
    with start(server, [repository], options) as running:
        code = running.wait()
    said.add((code, Path(log).read_text()))
print(said)
"""


def test_a_start_beside_a_client_of_grpc_never_fails(tmp_path: Path) -> None:
    """A fork would run gRPC's threads in the child: it aborted one start of fifty."""
    executable = triton_tree(tmp_path / "triton", HERE)
    executable.write_text("#!/bin/sh\ngrep ^SigIgn /proc/self/status\n")
    (tmp_path / "models" / "net" / "1").mkdir(parents=True)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nobody.listen()
        arguments = map(str, (executable, tmp_path / "models", nobody.getsockname()[1], tmp_path / "log"))
        done = subprocess.run(
            [sys.executable, "-c", STARTS, *arguments], capture_output=True, text=True, check=False, timeout=200
        )
    assert done.returncode == 0, done.stderr
    [(code, ignored)] = ast.literal_eval(done.stdout)
    assert code == 0
    mask = int(ignored.split()[1], 16)
    assert not mask & sum(1 << number - 1 for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)), ignored
