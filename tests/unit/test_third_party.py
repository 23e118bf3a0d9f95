"""Engines of other packages, as an installed package declares them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from loading_worker import write_model
from unified_backend.engines.third_party import third_party_engines
from unified_backend.forms.reference import ENGINES

ENGINE = "unified_backend.engines.openvino:OpenVino"  # any class that is one


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package with these entry points."""

    def install(*points: str) -> None:
        folder = tmp_path / "theirs-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text("\n".join(("[unified_backend.engines]", *points)))
        (tmp_path / "theirs.py").write_text(
            "from unified_backend.engines.openvino import OpenVino\nclass Mine(OpenVino):\n    name = 'mine'\n"
        )
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_a_package_brings_an_engine(package):
    package("mine = theirs:Mine")
    (engine,) = third_party_engines(ENGINES)
    assert engine.name == "mine"
    assert engine.unusable(None) is None


FAULTY = """
def fail_at(method):
    if method == WHERE:
        raise RuntimeError("boom")


class Faulty:
    name, accepts = "faulty", frozenset({"onnx"})

    def unusable(self, gpu):
        fail_at("unusable")

    def key_fields(self, settings):
        fail_at("key_fields")
        return {}

    def build(self, canonical, settings, folder):
        fail_at("build")
        return {}

    def load(self, canonical, built, settings, threads):
        fail_at("load")
        return Runner(canonical)


class Runner:
    def __init__(self, canonical):
        self.signature = canonical.signature

    def run(self, feeds, outputs, into=None):
        raise RuntimeError("boom")

    def close(self):
        pass
"""


@pytest.mark.parametrize("where", ["unusable", "key_fields", "build", "load", "run"])
def test_one_that_raises_anything_is_passed_over_with_the_reason(package, tmp_path, where):
    package("faulty = faulty:Faulty")
    (tmp_path / "faulty.py").write_text(f"WHERE = {where!r}\n{FAULTY}")
    folder = write_model(tmp_path / "repository/net/1")
    script = f"""
from pathlib import Path
from unified_backend.cache import Cache
from unified_backend.loading import describe, load
with Cache(Path({str(tmp_path / "cache")!r})) as cache:
    loaded = load(describe("net/1", Path({str(folder)!r}), {{}}, cache), cache)
print(loaded.engine, [(rung.reason) for rung in loaded.ladder if rung.engine == "faulty"])
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.startswith("onnxruntime "), done.stderr
    assert f"{where} raised RuntimeError: boom" in done.stdout


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ("gone = not_there:Engine", "No module named"),
        ("gone = theirs:Nothing", "no attribute"),
        ("other = theirs:Mine", 'calls itself "mine"'),
        (f"openvino = {ENGINE}", 'calls itself "openvino"'),
    ],
)
def test_one_that_cannot_be_used_is_a_warning_that_says_why(package, caplog, point, reason):
    package(point, "mine = theirs:Mine")
    assert [engine.name for engine in third_party_engines(ENGINES)] == ["mine"]
    (line,) = (line for line in caplog.messages if line.startswith("engine not used"))
    assert f"engine={point.split()[0]} object={point.split()[-1]}" in line
    assert reason in line
