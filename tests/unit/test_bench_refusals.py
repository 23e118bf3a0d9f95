"""What `bench` refuses before it serves anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from unified_backend.cli.bench import bench
from unified_backend.errors import Refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engines": "fast"}, '"fast" is none of auto'),
        ({"precisions": "fp32,fp31"}, '"fp31" is none of fp32'),
        ({"batch": "1,0"}, '"0" is no number from 1'),
        ({"shape": ["image"]}, "--shape image is not understood"),
        ({"against": Path(__file__)}, "test_bench_refusals.py is no result of bench"),
        ({"out": Path("nowhere/bench.json")}, "there is no such folder"),
        ({"out": Path()}, "it is a folder"),
        ({"data": Path("nowhere")}, "there is no such file or folder"),
        ({"url": "localhost:1", "instances": "2"}, "--url leaves nothing to choose"),
        ({"fail_if_slower": True}, "--fail-if-slower has nothing to go by"),
        ({}, "model is not there"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as refused:
        bench(str(tmp_path / "model"), **options)
    assert said in str(refused.value)


def test_a_report_without_its_extra_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else found(name))
    with pytest.raises(Refused, match=r"jinja2 is not installed.*triton-unified-backend\[report\]"):
        bench(str(tmp_path / "model"), report=tmp_path / "report.html")
