"""`triton-unified top` beside a real server under traffic that is known."""

from __future__ import annotations

import http.server
import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from helpers import COMMAND, LOCAL, UNIFIED, Triton, command, doubling_onnx
from test_metrics import LOOKUP, LOOPED
from tritonclient.utils import InferenceServerException
from unified_backend.errors import Refused
from unified_backend.server.metrics import metrics_url


@contextmanager
def watching(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it watches."""
    process = subprocess.Popen([COMMAND, "top", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def look(process: subprocess.Popen[str], model: str) -> dict[str, Any]:
    """The next line's model."""
    assert process.stdout
    line = json.loads(process.stdout.readline())
    return next(row for row in line["models"] if row["model"] == model)


@contextmanager
def page(*texts: str) -> Iterator[str]:
    """A URL that answers with one text after another, and with the last of them from then on."""
    left = list(texts)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write((left.pop(0) if len(left) > 1 else left[0]).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((LOCAL, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOCAL}:{server.server_port}/metrics"
        server.shutdown()


def test_it_tells_what_was_answered_in_the_interval(triton: Triton) -> None:
    with (
        triton.serving("watched", {"1/m.onnx": LOOKUP}, LOOPED) as model,
        watching("--url", triton.metrics_url, "--json", "--interval", "3") as process,
    ):
        quiet = look(process, model)
        assert quiet["requests_per_second"] == 0
        assert quiet["latency_ms"] is None
        assert quiet["engines"] == ["onnxruntime"]
        assert sum(quiet["cache"].values()) > 0
        for rows in (1, 3, 4, 8):
            triton.infer(model, {"index": np.zeros((rows, 1), np.int64)})
        for _ in range(2):
            with pytest.raises(InferenceServerException):
                triton.infer(model, {"index": np.full((1, 1), 7)})
        busy = look(process, model)
        after = look(process, model)
    # What the stub counts reaches the server within a second, and may fall into the next interval.
    rows = {row["mean_batch_size"] for row in (busy, after)} - {None}
    assert 4.0 in rows
    assert 3 * (busy["failures_per_second"] + after["failures_per_second"]) == pytest.approx(2, rel=0.3)
    assert 3 * busy["requests_per_second"] == pytest.approx(6, rel=0.3)
    latency = busy["latency_ms"]
    assert latency["total"] >= latency["queue"] + latency["input"] + latency["infer"] + latency["output"] > 0
    assert after["requests_per_second"] == 0


def test_piped_it_is_one_table_of_one_line_a_model(triton: Triton) -> None:
    with triton.serving("piped", {"1/m.onnx": doubling_onnx()}, UNIFIED) as model:
        done = command("top", "--url", triton.metrics_url.removeprefix("http://"), "--interval", "0.5")
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.startswith(f"{model}/1\t")]
    assert [row[1] for row in rows] == ["onnxruntime"]
    assert re.search(r"^CPU memory: .* of .*B$", done.stdout, re.MULTILINE)


def test_on_a_terminal_it_is_drawn_again_until_it_is_interrupted(triton: Triton) -> None:
    with triton.serving("drawn", {"1/m.onnx": doubling_onnx()}, UNIFIED) as model:
        screen, terminal = pty.openpty()
        process = subprocess.Popen(
            [COMMAND, "top", "--url", triton.metrics_url, "--interval", "0.3"],
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
        )
        os.close(terminal)
        shown = b""
        while shown.count(f"{model}/1".encode()) < 3:
            shown += os.read(screen, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        os.close(screen)
    assert b"Traceback" not in shown
    assert b"onnxruntime" in shown


def test_without_a_server_it_says_so() -> None:
    done = command("top", "--url", f"{LOCAL}:9", "--once")
    assert done.returncode == 1
    assert f"no metrics at http://{LOCAL}:9/metrics: Connection refused" in done.stderr


def test_what_is_no_tritons_page_is_told(triton: Triton) -> None:
    wrong = command("top", "--url", triton.url, "--once")
    assert wrong.returncode == 1
    assert "is no metrics page of a Triton server: it answers 40" in wrong.stderr
    with page("# HELP go_threads\ngo_threads 7\n") as url:
        other = command("top", "--url", url, "--once")
    assert other.returncode == 1
    assert "it has no metric of Triton's" in other.stderr


def test_what_is_no_url_is_refused() -> None:
    done = command("top", "--url", "file:///etc/passwd", "--once")
    assert done.returncode == 2, done.stderr
    assert "is no URL of a metrics page" in done.stderr
    for url in ("http://", "ftp://host", "host:99999", "two words", "http://[::1"):
        with pytest.raises(Refused):
            metrics_url(url)
    assert metrics_url("host:8002") == metrics_url("http://host:8002/metrics") == "http://host:8002/metrics"


def test_a_server_that_goes_away_ends_it_with_a_sentence() -> None:
    sample = 'nv_inference_request_success{model="m",version="1"} 5\n'
    with page(sample) as url:
        process = subprocess.Popen(
            [COMMAND, "top", "--url", url, "--json", "--interval", "0.3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        look(process, "m")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "the server went away" in said
    assert "Traceback" not in said


def test_counters_that_begin_again_are_no_rates() -> None:
    texts = [f'nv_inference_request_success{{model="m",version="1"}} {count}\n' for count in (500, 3, 9, 9)]
    with page(*texts[:2]) as url:
        done = command("top", "--url", url, "--once", "--interval", "0.3")
    assert done.returncode == 1
    assert "the counters of m/1 began again" in done.stderr
    with page(*texts) as url, watching("--url", url, "--json", "--interval", "0.5") as process:
        assert look(process, "m")["requests_per_second"] is None
        assert look(process, "m")["requests_per_second"] > 0


def test_gpus_and_labels_of_any_letters_are_read() -> None:
    text = (
        'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5\nnv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1000000000\n'
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 8e9 1700000000000\nnot a sample\nnv_broken{ 1\n'
        'nv_inference_request_success{model="a \\"b\\" {c}, d\\\\",version="1"} 1\n'
        'nv_inference_request_failure{model="a \\"b\\" {c}, d\\\\",reason="OTHER",version="1"} NaN\n'
    )
    with page(text) as url:
        shown = json.loads(command("top", "--url", url, "--once", "--json", "--interval", "0.3").stdout)
    assert shown["gpus"] == [
        {"uuid": "GPU-1", "utilization": 0.5, "memory_used": 1_000_000_000, "memory_total": 8_000_000_000}
    ]
    assert [row["model"] for row in shown["models"]] == ['a "b" {c}, d\\']
