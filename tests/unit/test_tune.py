"""`tune`: what is searched and in which order, what wins, and what is written into config.pbtxt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from unified_backend import hosts
from unified_backend.errors import ConfigError, Refused
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.pbtxt import from_pbtxt
from unified_backend.tuning.comparing import Compared, decide
from unified_backend.tuning.config_file import changed_fields, config_lines, merged, write_merged
from unified_backend.tuning.report import report
from unified_backend.tuning.run import Options, Run
from unified_backend.tuning.search import Goal, Tried, best_of, search, verdict
from unified_backend.tuning.served_point import fields_of, loaded
from unified_backend.tuning.space import Point, Space
from unified_backend.values import parse_milliseconds

START = Point("onnxruntime", threads=8, max_batch_size=32)
SPACE = Space(engines=("onnxruntime", "openvino", "mnn"), cores=8, most_batch=32)


def model_of_cost(point: Point) -> Reading:
    """A machine whose optimum is known: OpenVINO, four instances of two threads, batches of 8, a delay of 200 us."""
    speed = {"onnxruntime": 1.0, "openvino": 1.6, "mnn": 0.5}[point.engine]
    speed *= {1: 1.0, 2: 1.5, 4: 2.0, 8: 1.7}[point.instances]
    speed *= 1 - 0.1 * abs(point.threads - 2) / 8
    speed *= {8: 1.3, 2: 1.1, 32: 1.0}.get(point.max_batch_size, 0.8)
    speed *= {0: 1.0, 200: 1.1}.get(point.delay_us, 0.9)
    return Reading(100 * speed, p50=10 / speed, p99=40 / speed)


def measured(point: Point) -> Tried:
    return Tried(point, 8, model_of_cost(point))


def searched(
    measure: Callable[[Point], Tried] = measured, space: Space = SPACE, goal: Goal | None = None, start: Point = START
) -> list[Tried]:
    def both(point: Point, best: Tried | None) -> tuple[Tried, Tried | None]:
        return measure(point), best and measure(best.point)

    return list(search(start, space, goal or Goal(), both))


def test_the_search_begins_with_the_config_as_it_is_and_finds_the_optimum_without_measuring_twice():
    rows = searched()
    assert rows[0].point == START
    best = best_of(rows, Goal())
    assert best.point == Point("openvino", "", 4, 2, 8, 200)
    assert len({row.point for row in rows}) == len(rows) < 30


def test_a_machine_that_gets_slower_meanwhile_does_not_mislead_the_search():
    speed = 1.0

    def measure(point: Point) -> Tried:
        nonlocal speed
        speed *= 0.99
        reading = model_of_cost(point)
        return Tried(point, 8, dataclasses.replace(reading, throughput=speed * reading.throughput))

    rows = searched(measure)
    assert best_of(rows, Goal()).point == Point("openvino", "", 4, 2, 8, 200)
    assert max(rows, key=lambda row: row.reading.throughput).reading.throughput > rows[-1].reading.throughput


def test_latency_has_the_lowest_median_win():
    best = best_of(searched(goal=Goal("latency")), Goal("latency"))
    assert best.reading.p50 == min(row.reading.p50 for row in searched())


def test_what_is_over_the_budget_never_wins_and_is_left_as_soon_as_something_keeps_it():
    def measure(point: Point) -> Tried:
        reading = model_of_cost(point)
        late = 30 if point.engine == "onnxruntime" else 5 if point.instances < 4 else 25
        return Tried(point, 8, dataclasses.replace(reading, p99=late))

    goal = Goal(p99=20)
    rows = searched(measure, goal=goal)
    best = best_of(rows, goal)
    assert (best.point.engine, best.point.instances) == ("openvino", 2)
    fastest = max(rows, key=lambda row: row.reading.throughput)
    assert fastest.point.instances == 4
    assert verdict(fastest, best, goal) == "over the budget: p99 25 ms"


def test_where_nothing_keeps_the_budget_nothing_wins():
    goal = Goal(p99=0.1)
    rows = searched(goal=goal)
    assert best_of(rows, goal) is None
    assert all(verdict(row, None, goal).startswith("over the budget: p99") for row in rows)


def test_what_cannot_be_served_loses_with_its_reason():
    def measure(point: Point) -> Tried:
        return Tried(point, reason="no such operator") if point.engine == "openvino" else measured(point)

    rows = searched(measure)
    best = best_of(rows, Goal())
    assert best.point.engine == "onnxruntime"
    refused = [row for row in rows if row.reading is None]
    assert [verdict(row, best, Goal()) for row in refused] == ["could not be served: no such operator"]


def test_a_start_that_cannot_be_served_is_left():
    def measure(point: Point) -> Tried:
        return Tried(point, reason="broken") if point == START else measured(point)

    assert best_of(searched(measure), Goal()).point.engine == "openvino"


def test_differences_within_the_noise_move_nothing():
    rows = searched(lambda point: Tried(point, 8, Reading(100.0 if point == START else 101.0, 1, 1)))
    assert {row.point.engine for row in rows[1:3]} == {"openvino", "mnn"}
    assert all(row.point.engine == "onnxruntime" for row in rows[3:])


@pytest.mark.parametrize(
    ("space", "fields"),
    [
        (Space(cores=8, alone=True, most_batch=32), {"threads"}),
        (Space(cores=8, instances=False), {"threads"}),
        (Space(cores=8, gpu=True, most_batch=128), {"instances", "max_batch_size", "delay_us"}),
        (Space(precisions=("fp16",), alone=True), {"precision", "threads"}),
    ],
    ids=["one request at a time", "several instance groups", "gpu", "precisions that were asked for"],
)
def test_only_what_can_matter_is_moved(space, fields):
    rows = searched(lambda point: Tried(point, 1, Reading(1, 1, 1)), space)
    moved = {name for row in rows for name, value in vars(row.point).items() if value != vars(START)[name]}
    assert moved == fields


@pytest.mark.parametrize("space", [SPACE, dataclasses.replace(SPACE, alone=True)], ids=["many requests", "one"])
def test_a_delay_that_is_set_is_looked_at_first(space):
    start = dataclasses.replace(START, delay_us=200_000)
    rows = searched(lambda point: Tried(point, 1, Reading(1, 1 + point.delay_us, 1)), space, Goal("latency"), start)
    assert [row.point.delay_us for row in rows[:5]] == [200_000, 4000, 1000, 200, 0]
    assert best_of(rows, Goal("latency")).point.delay_us == 0


def test_batches_that_no_load_fills_are_not_tried():
    rows = searched(space=dataclasses.replace(SPACE, in_flight=4))
    assert {row.point.max_batch_size for row in rows} == {32, 4, 2, 1}


def test_delays_stay_within_their_share_of_the_budget():
    space = dataclasses.replace(SPACE, longest_delay_us=500)
    assert max(row.point.delay_us for row in searched(space=space)) == 200


def test_a_model_that_takes_no_batches_gets_no_batching():
    start = dataclasses.replace(START, max_batch_size=0)
    rows = searched(lambda point: Tried(point, reason="-"), dataclasses.replace(SPACE, most_batch=0), start=start)
    assert {(row.point.max_batch_size, row.point.delay_us) for row in rows} == {(0, 0)}


def queue_of(concurrency: int) -> Reading:
    """A server that answers 100 requests a second one after the other; the slowest of 100 waits twice as long."""
    wait = 10.0 * concurrency
    return Reading(100.0 if concurrency > 1 else 70.0, p50=wait, p99=2 * wait)


@pytest.mark.parametrize(
    ("p99", "first", "may_change", "in_flight"),
    [
        (None, 32, True, 32),
        (100.0, 32, True, 4),
        (100.0, 1, True, 4),
        (100.0, 32, False, 32),
        (1.0, 32, True, 1),
        (10000.0, 8, True, 8),
    ],
    ids=["no budget", "lowered", "raised", "the user's load", "never kept", "more does not help"],
)
def test_the_load_is_what_the_budget_allows(p99, first, may_change, in_flight):
    tried = loaded(START, Goal(p99=p99), first, 64, may_change, queue_of)
    assert tried.concurrency == in_flight
    assert tried.reading == queue_of(in_flight)


def side(point: Point, *throughputs: float, p99: float = 10.0) -> Compared:
    return Compared(point, 8, [Reading(value, p50=1000 / value, p99=p99) for value in throughputs])


FASTER = dataclasses.replace(START, engine="openvino")


@pytest.mark.parametrize(
    ("default", "best", "goal", "wins", "why"),
    [
        ((100, 102, 98), (120, 118, 123), Goal(), True, "beyond the noise of 3 rounds"),
        ((100, 102, 98), (120, 118, 123), Goal("latency"), True, "beyond the noise of 3 rounds"),
        ((100, 130, 80), (110, 140, 85), Goal(), False, "within the noise of 3 rounds"),
        ((100, 102, 98), (90, 91, 89), Goal(), False, "in 3 rounds"),
        ((100, 100), (200, 200), Goal(), False, "the budget left no time for the 3 rounds"),
        ((100, 102, 98), (120, 118, 123), Goal(p99=5), False, "side by side its p99 was 10 ms"),
    ],
)
def test_the_config_as_it_is_stays_unless_it_is_beaten_beyond_the_noise(default, best, goal, wins, why):
    decision = decide(side(START, *default), side(FASTER, *best), goal)
    assert (decision.winner is not None) is wins
    assert decision.why.startswith(why)


def test_who_keeps_the_budget_beats_who_does_not():
    decision = decide(side(START, 100, 100, 100, p99=30), side(FASTER, 90, 90, 90, p99=15), Goal(p99=20))
    assert decision.winner.point == FASTER
    assert decision.ratio == pytest.approx(0.9)


def test_a_report_says_who_won_by_how_much_and_why_the_others_lost(monkeypatch):
    monkeypatch.setattr(hosts, "cores", lambda: 8)
    rows = [row for row in searched() if row.point in (START, FASTER)]
    done = Run(base=START, rows=rows, compared=[side(START, 100, 101, 99), side(FASTER, 160, 161, 159)])
    done.decision = decide(*done.compared, Goal())
    found = report("net", {"backend": "unified"}, Options(), done, {})
    assert found["conclusion"] == (
        "engine openvino wins: 1.60 times the throughput of the config as it is, beyond the noise of 3 rounds"
    )
    assert found["lines"] == ['parameters { key: "engine" value { string_value: "openvino" } }']
    assert [(row["as_it_is"], row["engine"]) for row in found["tried"]] == [(True, "onnxruntime"), (False, "openvino")]
    done.decision = decide(side(START, 100, 101, 99), side(FASTER, 100, 101, 99), Goal())
    stays = report("net", {}, Options(), done, {})
    assert stays["lines"] == []
    assert stays["conclusion"].startswith("the config as it is stays: the best that was tried has 1.00 times")


@pytest.mark.parametrize(
    ("changes", "config", "lines"),
    [
        ({}, {}, []),
        ({"instances": 2, "threads": 4}, {}, ["instance_group { count: 2 }"]),
        (
            {"instances": 2, "threads": 2},
            {"instance_group": [{"kind": "KIND_CPU"}]},
            [
                "instance_group { count: 2 kind: KIND_CPU }",
                'parameters { key: "intra_op_thread_count" value { string_value: "2" } }',
            ],
        ),
        (
            {"delay_us": 200},
            {
                "dynamic_batching": {"preserve_ordering": True},
                "parameters": {"build": {"string_value": "background"}},
            },
            ["dynamic_batching { max_queue_delay_microseconds: 200 preserve_ordering: true }"],
        ),
        (
            {"instances": 2, "threads": 4},
            {"parameters": {"intra_op_thread_count": {"string_value": "8"}}},
            [
                "instance_group { count: 2 }",
                'parameters { key: "intra_op_thread_count" value { string_value: "4" } }',
            ],
        ),
    ],
    ids=["nothing", "threads follow the instances", "other threads", "what stands beside it stays", "threads written"],
)
def test_only_what_was_moved_is_written(monkeypatch, changes, config, lines):
    monkeypatch.setattr(hosts, "cores", lambda: 8)
    assert config_lines(fields_of(dataclasses.replace(START, **changes), START, config)) == lines


@pytest.mark.parametrize(("text", "value"), [("20ms", 20), ("0.02s", 20), (" 20 MS", 20), ("500us", 0.5), (".5s", 500)])
def test_durations(text, value):
    assert parse_milliseconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["20", "ms", "0ms", "-1ms", "1h", "", "inf s", "1e3ms"])
def test_what_is_no_duration_is_said_to_be_none(text):
    with pytest.raises(ValueError, match="20ms"):
        parse_milliseconds(text)


FIELDS = {
    "max_batch_size": 8,
    "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
    "dynamic_batching": {"max_queue_delay_microseconds": "200", "preferred_batch_size": [4]},
    "parameters": {"engine": {"string_value": "openvino"}, "intra_op_thread_count": {"string_value": "1"}},
}
LINES = """\
max_batch_size: 8
instance_group { count: 2 kind: KIND_CPU }
dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 200 }
parameters { key: "engine" value { string_value: "openvino" } }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
"""
COMMENTED = """\
# the company's detector; do not # touch
backend: "unified"   # ours
max_batch_size: 32  # what clients send
input [ { name: "x # no comment" } ]
instance_group [
  { count: 1 }  # one
]
parameters [
  { key: "engine" value { string_value: "auto" } },
  { key: 'note' value { string_value: "a # b" ' c' } }
]
# the end
"""


def test_lines_are_one_a_field():
    assert "\n".join(config_lines(FIELDS)) + "\n" == LINES


def test_only_what_differs_is_a_line():
    old = {"max_batch_size": 32, "parameters": {"engine": {"string_value": "auto"}, "a": {"string_value": "1"}}}
    new = {"max_batch_size": 32, "parameters": {"engine": {"string_value": "mnn"}, "a": {"string_value": "1"}}}
    assert changed_fields(old, new) == {"parameters": {"engine": {"string_value": "mnn"}}}
    assert changed_fields(old, old) == {}


def test_merging_keeps_the_users_fields_order_and_comments():
    found = merged(COMMENTED, FIELDS)
    assert found.lost == ["# one"]
    kept = [line for line in COMMENTED.splitlines() if line.startswith(("# ", "backend", "input"))]
    assert [line for line in found.text.splitlines() if line in kept] == kept
    assert "max_batch_size: 8  # what clients send" in found.text
    config = from_pbtxt(found.text)
    assert config["parameters"] == {**FIELDS["parameters"], "note": {"string_value": "a # b c"}}
    assert {name: config[name] for name in FIELDS if name != "parameters"} == {
        name: value for name, value in FIELDS.items() if name != "parameters"
    }
    assert config["input"] == [{"name": "x # no comment"}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        'backend: "unified"',
        "max_batch_size: 4, dynamic_batching { }; instance_group { count: 1 } instance_group { count: 3 }",
        'parameters { key: "engine" value: { string_value: "mnn" } }',
        'parameters < key: "a" value < string_value: "}" > >\n',
        "dynamic_batching {\n  # why\n  max_queue_delay_microseconds: 7\n}\n",
        "instance_group: [{count: 4}]\nmax_batch_size:4",
    ],
)
def test_every_form_of_a_config_can_be_merged_into(text):
    before, after = from_pbtxt(text), from_pbtxt(merged(text, FIELDS).text)
    assert after == {**before, **FIELDS, "parameters": {**before.get("parameters", {}), **FIELDS["parameters"]}}
    assert merged(merged(text, FIELDS).text, FIELDS).lost == []
    assert from_pbtxt(merged(merged(text, FIELDS).text, FIELDS).text) == after


def test_a_file_is_written_and_what_was_done_is_said(tmp_path):
    path = tmp_path / "config.pbtxt"
    assert write_merged(path, FIELDS) == f"wrote {path}"
    assert path.read_text() == LINES
    path.write_text(COMMENTED)
    said = write_merged(path, {"max_batch_size": 4})
    assert "all else in it is as it was" in said
    assert path.read_text() == COMMENTED.replace("max_batch_size: 32", "max_batch_size: 4")
    path.write_text(COMMENTED)
    assert "1 comment could not be kept" in write_merged(path, FIELDS)
    assert (tmp_path / "config.pbtxt.bak").read_text() == COMMENTED
    assert sorted(child.name for child in tmp_path.iterdir()) == ["config.pbtxt", "config.pbtxt.bak"]


def test_a_config_that_does_not_parse_or_cannot_be_written_is_left_alone(tmp_path):
    path = tmp_path / "config.pbtxt"
    path.write_text("max_batch_size: {")
    with pytest.raises(ConfigError, match="does not parse"):
        write_merged(path, FIELDS)
    assert path.read_text() == "max_batch_size: {"
    with pytest.raises(Refused, match="cannot be written"):
        write_merged(tmp_path / "gone/config.pbtxt", FIELDS)
