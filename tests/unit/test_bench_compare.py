"""What `bench --compare` says became slower or faster."""

from __future__ import annotations

import pytest
from measured import point, result
from unified_backend.measuring.compare import compare


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ([100, 101, 99], [80, 82, 81], "slower"),
        ([100, 101, 99], [120, 121, 122], "faster"),
        ([100, 101, 70], [80, 82, 81], "same"),  # one of the old rounds was as slow
        ([100, 101, 100], [99, 99, 98.9], "same"),  # apart, and by one in a hundred
        ([100], [50, 51], "one round tells no noise"),
    ],
)
def test_a_change_is_told_when_no_round_of_one_side_reaches_the_other(
    before: list[float], now: list[float], verdict: str
) -> None:
    found = compare(result([point("auto x1", before)]), result([point("auto x1", now)]))
    assert [row.verdict for row in found.rows] == [verdict]
    assert bool(found.slower) is (verdict == "slower")


def test_points_are_matched_by_variant_batch_and_concurrency() -> None:
    old = result([point("auto x1", [10, 11], 1, 1), point("auto x1", [20, 21], 4, 1), point("mnn x1", [5, 5])])
    new = result([point("auto x1", [20, 21], 4, 1), point("auto x1", [10, 11], 1, 1), point("auto x1", [9, 9], 4, 8)])
    found = compare(old, new)
    assert {(row.batch, row.concurrency, row.ratio) for row in found.rows} == {(1, 1, 1.0), (4, 1, 1.0)}
    assert found.only == ["mnn x1 batch 1 concurrency 1", "auto x1 batch 4 concurrency 8"]


def test_what_may_explain_a_change_is_told() -> None:
    points = [point("auto x1", [10, 11])]
    old = result(points)
    new = result(points, versions={"triton": "2.51.0", "onnxruntime": "1.32.0"}, inputs="3 images of photos")
    new = result(points, machine={**old.machine, "cores": 8}, versions=new.versions, inputs=new.inputs)
    assert compare(old, new).differences == [
        "machine cores: 2 before, 8 now",
        "version onnxruntime: 1.31.1 before, 1.32.0 now",
        "inputs: random numbers before, 3 images of photos now",
    ]
    assert compare(old, old).differences == []
