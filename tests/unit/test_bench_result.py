"""The JSON of `bench`: written, read back, and refused where it is something else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from measured import point, result, variant
from unified_backend.cache import Cache, Key
from unified_backend.errors import Refused
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.result import PointResult, Skipped, spread
from unified_backend.measuring.saved import parse, read_result, write_result
from unified_backend.measuring.verified import verified


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = result([point("auto x1", [100, 103, 98], busy=0.5)], skipped=[Skipped("tensorrt x1", "no driver")])
    made = made.with_advice(["do this"])
    write_result(made, tmp_path / "bench.json")
    again = read_result(tmp_path / "bench.json")
    assert again.to_json() == made.to_json()
    values = json.loads((tmp_path / "bench.json").read_text())
    assert values["schema"] == 1
    assert values["points"][0]["throughput"] == {"median": 100, "low": 99, "high": 101.5}
    assert values["skipped"] == [{"what": "tensorrt x1", "why": "no driver"}]


def test_the_spread_of_rounds_is_their_quartiles() -> None:
    assert (spread([4.0]).low, spread([4.0]).high) == (4.0, 4.0)
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]).low == 2.0


def test_numbers_that_are_none_are_null_in_json(tmp_path: Path) -> None:
    made = result([PointResult("auto x1", 1, 1, [Reading(10.0, 1.0, 2.0)])])  # no p90
    write_result(made, tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text())["points"][0]["rounds"][0]["p90"] is None
    assert math.isnan(read_result(tmp_path / "bench.json").points[0].rounds[0].p90)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("no json", "it is not JSON"),
        ("[1]", 'it has no "schema"'),
        ('{"schema": 7}', "its schema is 7, and this version reads 1"),
        ('{"schema": 1}', "'made' is a required property"),
        ('{"schema": 1, "variants": 3, "points": [], "skipped": []}', "bench.json is no whole result"),
    ],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    with pytest.raises(Refused, match=r"bench\.json") as refused:
        read_result(path)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"points": [{"variant": "x"}]}, "points/0: 'batch' is a required property"),
        ({"variants": []}, 'a point names the variant "auto x1"'),
        ({"inputs": 3}, "inputs: 3 is not of type 'string'"),
    ],
)
def test_a_result_that_is_not_whole_is_refused_with_the_place(change: dict[str, Any], why: str) -> None:
    values = result([point("auto x1", [100, 103])]).to_json()
    assert parse(values).to_json() == values
    with pytest.raises(Refused, match="the result is no whole result of bench") as refused:
        parse(values | change)
    assert why in str(refused.value)
    with pytest.raises(Refused, match="two variants are named"):
        parse(values | {"variants": 2 * values["variants"]})


def test_an_error_relative_to_zeros_is_a_number_that_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_UNIFIED_CACHE", str(tmp_path))
    noise, shape = {"passed": True, "max_abs": 1e-8, "max_rel": math.inf}, {"passed": False, "max_abs": math.inf}
    rows = [{"output": "y", "tolerance": 1e-3} | noise, {"output": "z", "tolerance": 1e-3, "max_rel": math.inf} | shape]
    with Cache(tmp_path) as cache:
        entry = cache.get_or_make(Key("engine", {"of": "net"}), lambda folder: {"verified": rows})
        cache.store.usage.remember("net/1", [entry.path.name])
    checks = verified({"net/1"}, set(), 0.0)
    assert [(check.max_abs, check.max_rel, check.passed) for check in checks] == [(1e-8, 1e-8, True), (1.0, 1.0, False)]
    made = result([point("net", [1.0])], [variant("net", verified=checks)])
    assert parse(json.loads(json.dumps(made.to_json()))).variants[0].verified == checks
