"""Engines of other packages, as an installed package declares them."""

from __future__ import annotations

import pytest
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
