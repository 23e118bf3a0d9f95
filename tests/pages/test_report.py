"""A benchmark's report, as a person reads it: in a browser, on a phone, in the dark, on paper, and by keyboard."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened import Opened
from playwright.sync_api import Page
from results import result, variant
from unified_backend.errors import Refused
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.result import PointResult, Result, ServedVariant
from unified_backend.measuring.saved import parse
from unified_backend.reports import palette, require, write

PageAt = Callable[..., Opened]

ENGINES = ("onnxruntime", "openvino", "mnn")
LONG = "a_very_long_model_name_without_a_single_space_" * 3
# What would be markup, a format, an identifier or a colour, were it not a name.
ODD = "<b>bold</b> & $a_b$ id=\"x\" url(#y) #fe0100 'q' 1.23456 `c` \x1b[31m\nend"


def _few() -> dict[str, Any]:
    failed = variant("mnn", "fp16")
    failed["verified"][0] |= {"max_rel": 0.4, "passed": False}
    exact = variant("openvino", "int8", asked_engine="auto", notes=["an engine of its own"])
    advice = ["two instances are 1.4 times as fast: `instances: 2`", *(f"advice {number}" for number in range(6))]
    return result([variant(), variant(instances=2), failed, exact], (1, 8), (1, 4, 16)) | {"advice": advice}


# Of linear RGB, as eyes without one kind of cones have it: Machado, Oliveira and Fernandes, 2009.
VISION = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def _one() -> dict[str, Any]:
    return result([variant()])


def _many() -> dict[str, Any]:
    variants = [variant(engine, kind, count) for engine in ENGINES for kind in ("fp32", "fp16") for count in (1, 2)]
    return result(variants, (1, 8, 32), (1, 4, 16))


def _pipeline() -> dict[str, Any]:
    one = result([variant(model="ocr"), variant("openvino", model="ocr")], (1,), (1, 4))
    one["subject"]["kind"] = "pipeline"
    for each in one["points"]:
        inside = {name: each["parts"][name] for name in ("queue", "input", "infer", "output")}
        each["steps"] = [
            {"model": name, "parts": {part: share * value for part, value in inside.items()}}
            for name, share in (("detect", 0.5), ("crop_" + LONG, 0.1), ("recognise", 0.4))
        ]
    return one


def _odd() -> dict[str, Any]:
    variants = [variant(model=LONG, id=LONG + "x1"), variant("openvino", model=ODD, id=ODD + "x1")]
    variants[0]["verified"][0]["passed"] = False
    subject = {"name": ODD, "kind": "repository", "models": [LONG, ODD]}
    skipped = [{"what": ODD, "why": ODD}]
    return result(variants, (1,), (1, 16), subject=subject, skipped=skipped, advice=[ODD], command=ODD, inputs=ODD)


def _nothing() -> dict[str, Any]:
    bare = variant(verified=[], memory_bytes=None, load_seconds=None)
    return result([bare], (), advice=[], subject={"name": "none", "kind": "model", "models": ["none"]})


RESULTS = {"one": _one, "few": _few, "many": _many, "pipeline": _pipeline, "odd": _odd, "nothing": _nothing}


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """name -> the result and its report."""
    folder = tmp_path_factory.mktemp("reports")
    drawn: dict[str, tuple[dict[str, Any], Path]] = {}

    def get(name: str) -> tuple[dict[str, Any], Path]:
        if name not in drawn:
            # What is saved is what is drawn: through JSON and back.
            value = json.loads(json.dumps(RESULTS[name]()))
            write(parse(value), folder / f"{name}.html")
            drawn[name] = value, folder / f"{name}.html"
        return drawn[name]

    return get


def open_details(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")


@pytest.mark.parametrize("name", RESULTS)
def test_a_page_asks_for_nothing_and_fits_screens_of_any_width(reports: Any, page_at: PageAt, name: str) -> None:
    _, path = reports(name)
    opened = page_at(path, width=360)
    page = opened.page
    assert opened.overflow() <= 0
    open_details(page)
    assert opened.overflow() <= 0
    page.set_viewport_size({"width": 1440, "height": 900})
    assert opened.overflow() <= 0
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert (opened.errors, opened.failed, opened.outside) == ([], [], [])
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_can_be_read_by_everyone(reports: Any, page_at: PageAt, dark: bool) -> None:
    opened = page_at(reports("odd")[1], width=720, dark=dark)
    open_details(opened.page)
    assert opened.violations() == []


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_colours_stand_out_from_their_paper(colours: dict[str, str]) -> None:
    """axe does not look into drawings."""
    text = {role: _contrast(colours[role], colours["paper"]) for role in ("ink", "soft", "link", "good", "bad")}
    marks = {role: _contrast(colours[role], colours["paper"]) for role in colours if role.startswith("series-")}
    assert {role: value for role, value in text.items() if value < 4.5} == {}
    assert {role: value for role, value in marks.items() if value < 3} == {}
    assert _contrast(colours["soft"], colours["raised"]) >= 4.5


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", VISION)
def test_colours_differ_for_all_eyes(colours: dict[str, str], eyes: str) -> None:
    seen = [_cielab(np.array(VISION[eyes]) @ _linear(colours[role])) for role in colours if role.startswith("series-")]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 30


def test_every_variant_has_a_look_of_its_own() -> None:
    variants = parse(_many()).variants
    looks = palette.looks(variants)
    assert len({look.marker for look in looks.values()}) == len(variants)
    hues = {(one.engine, looks[one.id].colour) for one in variants}
    assert len(hues) == len({engine for engine, _ in hues}) == len({hue for _, hue in hues}) == 3
    assert len({looks[one.id].dashes for one in variants}) == 2


@pytest.mark.parametrize("name", ["one", "few", "many"])
def test_marks_stand_where_the_numbers_say(reports: Any, page_at: PageAt, name: str) -> None:
    value, path = reports(name)
    page = page_at(path).page
    for batch, percentile in product({one["batch"] for one in value["points"]}, ("p50", "p99")):
        key = f"m1-b{batch}-{percentile}"
        across, up = _axis(page, key, "x"), _axis(page, key, "y")
        for number, own in enumerate(value["variants"]):
            points = [one for one in value["points"] if one["variant"] == own["id"] and one["batch"] == batch]
            marks = page.evaluate(
                "key => [...document.querySelectorAll(key)].map(one => [one.x.baseVal.value, one.y.baseVal.value])",
                f"#{key}-first-mark-{number} use, #{key}-marks-{number} use",
            )
            expected = [[across(one["throughput"]["median"]), up(one[percentile]["median"])] for one in points]
            assert len(marks) == len(points)
            assert _flat(marks) == pytest.approx(_flat(expected), abs=0.6)


def test_lines_span_the_quartiles_of_the_rounds(reports: Any, page_at: PageAt) -> None:
    value, path = reports("few")
    page = page_at(path).page
    across = _axis(page, "m1-b1-p50", "x")
    points = [one for one in value["points"] if one["variant"] == value["variants"][0]["id"] and one["batch"] == 1]
    spans = page.evaluate(
        "[...document.querySelectorAll('#m1-b1-p50-x-spread-0 path')]"
        ".map(one => one.getBBox()).map(box => [box.x, box.width])"
    )
    ends = [(across(one["throughput"]["low"]), across(one["throughput"]["high"])) for one in points]
    assert _flat(spans) == pytest.approx(_flat([(low, high - low) for low, high in ends]), abs=0.6)


def test_bars_are_as_long_as_their_share_of_the_time(reports: Any, page_at: PageAt) -> None:
    value, path = reports("few")
    page = page_at(path).page
    for number, own in enumerate(value["variants"]):
        points = [one for one in value["points"] if one["variant"] == own["id"]]
        for place, one in enumerate(points):
            widths = page.evaluate(
                "end => Object.fromEntries([...document.querySelectorAll(end)]"
                ".map(one => [one.id.split('-part-')[1].split('-')[0], one.getBBox().width]))",
                f"[id^='m1-parts-{number}-part-'][id$='-{place}']",
            )
            parts = one["parts"]
            client = parts["client send"] + parts["client receive"]
            shares = {
                name.removesuffix("process"): part  # `pre` and `post`
                for name, part in parts.items()
                if part and not name.startswith("client")
            }
            shares |= {"client": client}
            whole, total = sum(widths.values()), sum(shares.values())
            assert {name: width / whole for name, width in widths.items()} == pytest.approx(
                {name: share / total for name, share in shares.items()}, abs=2e-3
            )


def test_steps_of_a_pipeline_follow_one_another(reports: Any, page_at: PageAt) -> None:
    value, path = reports("pipeline")
    page = page_at(path).page
    boxes = page.evaluate(
        "[0, 1, 2].map(step => [...document.querySelectorAll(`[id^='m1-steps-0-part-'][id$='-1-${step}']`)]"
        ".map(one => one.getBBox()).map(box => [box.x, box.x + box.width, box.y]))"
    )
    starts, ends = [min(box[0] for box in step) for step in boxes], [max(box[1] for box in step) for step in boxes]
    assert starts[1:] == pytest.approx(ends[:-1], abs=1)
    assert len({round(step[0][2]) for step in boxes}) == 3
    [loaded] = [one for one in value["points"][:2] if one["concurrency"] == 4]
    spent = [sum(step["parts"].values()) for step in loaded["steps"]]
    names = page.locator("#m1-steps-1-data").locator("xpath=ancestor::table").locator("tbody th").all_text_contents()
    assert [name.strip() for name in names[:3]] == [step["model"] for step in loaded["steps"]]
    widths = [end - start for start, end in zip(starts, ends, strict=True)]
    assert [width / sum(widths) for width in widths] == pytest.approx([one / sum(spent) for one in spent], abs=0.01)


def test_errors_are_marked_at_their_size_with_what_is_accepted(reports: Any, page_at: PageAt) -> None:
    value, path = reports("few")
    page = page_at(path).page
    across = _axis(page, "m1-errors", "x")
    for number, own in enumerate(value["variants"]):
        for kind in ("passed", "failed"):
            marks = page.evaluate(
                "key => [...document.querySelectorAll(key)].map(one => one.x.baseVal.value)",
                f"#m1-errors-checks-{number}-{kind} use",
            )
            checks = [one["max_rel"] for one in own["verified"] if one["passed"] == (kind == "passed")]
            assert len(marks) == len(checks)
            assert [at for at, size in zip(marks, checks, strict=True) if size] == pytest.approx(
                [across(size) for size in checks if size], abs=0.6
            )
    assert "FAILED" in page.locator("#m1-compared-table").locator("xpath=ancestor::table").inner_text()
    best = page.locator(".facts dd").first.inner_text()
    assert "mnn" not in best  # it has the most throughput, and the wrong answers


@pytest.mark.parametrize("name", ["few", "many", "pipeline", "odd"])
def test_drawings_are_whole_and_their_words_do_not_collide(reports: Any, page_at: PageAt, name: str) -> None:
    _, path = reports(name)
    page = page_at(path, width=360).page
    found = page.evaluate(
        """() => [...document.querySelectorAll('.drawing svg')].map(svg => {
            const outer = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll('text')].filter(one => one.textContent.trim());
            const boxes = texts.map(one => one.getBoundingClientRect());
            const pairs = boxes.flatMap((one, i) => boxes.slice(i + 1).map(other =>
                Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1 &&
                Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 5));
            return {
                width: outer.width, height: outer.height, texts: texts.length,
                smallest: Math.min(...texts.map(one => parseFloat(getComputedStyle(one).fontSize) * outer.width /
                    svg.viewBox.baseVal.width)),
                outside: texts.filter((one, i) => boxes[i].left < outer.left - 2 || boxes[i].right > outer.right + 2 ||
                    boxes[i].top < outer.top - 2 || boxes[i].bottom > outer.bottom + 2).map(one => one.textContent),
                collisions: pairs.filter(Boolean).length,
            };
        })"""
    )
    assert found
    for one in found:
        assert one["width"] > 250 and one["height"] > 50 and one["texts"] >= 4
        assert one["smallest"] >= 11
        assert (one["outside"], one["collisions"]) == ([], 0)


def test_tables_have_the_numbers_that_were_measured(reports: Any, page_at: PageAt) -> None:
    value, path = reports("few")
    page = page_at(path).page
    rows = _table(page, "m1-curves-1-data")
    expected = [
        [one["variant"], one["concurrency"], *(one[of]["median"] for of in ("throughput", "p50", "p99")), 3]
        for own in value["variants"]
        for one in value["points"]
        if one["variant"] == own["id"] and one["batch"] == 1
    ]
    assert [[row[0]["text"], *(row[at]["value"] for at in (1, 2, 4, 6, 8))] for row in rows] == expected
    for row in rows:
        for cell in row[1:]:
            if cell["value"] is not None:
                assert float(cell["text"].replace(",", "")) == pytest.approx(cell["value"], rel=5e-3)
    compared = _table(page, "m1-compared-table")
    for row, own in zip(compared, value["variants"], strict=True):
        points = [one for one in value["points"] if one["variant"] == own["id"]]
        assert row[0]["text"] == own["id"]
        assert row[1]["value"] == max(one["throughput"]["median"] for one in points)
        assert row[2]["value"] == min(one["p50"]["median"] for one in points)
        assert row[3]["value"] == max(check["max_rel"] for check in own["verified"])
        assert [row[6]["value"], row[7]["value"]] == [own["memory_bytes"], own["load_seconds"]]


def test_what_bench_makes_of_its_readings_is_drawn(page_at: PageAt, tmp_path: Path) -> None:
    """Its own classes, with what may be missing: percentiles, memory, parts, verification."""
    variant = ServedVariant(
        "fused", "ocr", "auto", "pipeline", "as it came", "as it came", 1, 2, 0, 0.5, None, (), ("a",)
    )
    rounds = [Reading(speed, 3.5, parts={"queue": 1.0, "infer": 2.25}) for speed in (10.5, 11.5, 14.0)]
    points = [PointResult("fused", 1, 1, rounds), PointResult("fused", 1, 4, [Reading(21.0, 7.0)])]
    facts = {"cpu": "A processor", "cores": 2, "memory_bytes": 1000, "gpu": ["One", "Two"], "system": "Linux"}
    subject = {"name": "ocr", "kind": "pipeline", "models": ["ocr"]}
    done = Result("2026-11-27T16:40:00+00:00", subject, "bench", facts, {}, "zeros", variants=[variant], points=points)
    write(parse(done.to_json()), tmp_path / "report.html")
    opened = page_at(tmp_path / "report.html")
    rows = _table(opened.page, "m1-curves-1-data")
    assert [row[2]["value"] for row in rows] == [point.throughput.median for point in points] == [11.5, 21.0]
    assert [row[6]["text"] for row in rows] == ["-", "-"]
    assert opened.page.locator("#m1-b1-p50-marks-0 use").count() == 1
    assert opened.page.locator("[id^=m1-b1-p99]").count() == 0
    assert [row[-1]["value"] for row in _table(opened.page, "m1-shares-1-data")] == [3.25]
    assert opened.errors == []


def test_every_plot_has_words_and_a_table(reports: Any, page_at: PageAt) -> None:
    page = page_at(reports("few")[1]).page
    figures = page.locator("figure").all()
    assert figures
    for figure in figures:
        for drawing in figure.get_by_role("img").all():
            assert len(drawing.get_attribute("aria-label") or "") > 40
        assert figure.locator("details table tbody tr").count() > 0


def test_all_can_be_reached_by_keyboard(reports: Any, page_at: PageAt) -> None:
    page = page_at(reports("few")[1], width=360).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["y"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    open_details(page)
    page.evaluate("window.seen = new Set(); document.addEventListener('focusin', event => seen.add(event.target))")
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("!document.activeElement.closest('main')"):
            break
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    missed = page.evaluate(
        "[...document.querySelectorAll('main .scroll, main summary, main pre')].filter(one => !seen.has(one)).length"
    )
    assert missed == 0


def test_paper_is_light_and_holds_whole_plots(reports: Any, page_at: PageAt) -> None:
    opened = page_at(reports("few")[1], width=794, dark=True)
    page = opened.page
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)" != dark
    line = page.locator("#m1-b1-p50-line-0 path")
    assert line.evaluate("one => getComputedStyle(one).stroke") == _rgb(palette.LIGHT["series-1"])
    assert opened.overflow() <= 0
    assert page.evaluate(
        "[...document.querySelectorAll('figure')].every(one => getComputedStyle(one).breakInside == 'avoid')"
    )
    assert not page.locator("nav").is_visible()
    last = page.locator(".advice li").last
    assert last.inner_text() == "advice 5"
    assert last.bounding_box()["height"] > 5  # though it is folded away on a screen
    assert len(page.pdf(format="A4")) > 10_000


def test_names_are_names_whatever_they_look_like(reports: Any, page_at: PageAt) -> None:
    _, path = reports("odd")
    page = page_at(path).page
    shown = ODD.replace("\x1b", " ").replace("\n", " ")
    assert page.locator("b").count() == 0
    assert page.locator("h1").text_content() == shown
    assert page.locator("pre code").text_content() == shown
    assert page.locator("h2", has_text="bold").text_content() == shown
    drawn = page.evaluate("[...document.querySelectorAll('svg text')].map(one => one.textContent).join('')")
    assert "".join(shown.split()) in "".join(drawn.split())


def test_the_page_says_what_to_do_what_was_skipped_and_how_to_repeat_it(reports: Any, page_at: PageAt) -> None:
    value, path = reports("few")
    page = page_at(path).page
    assert page.locator("h2").first.inner_text() == "What to do"
    said = [line.replace("`", "") for line in value["advice"]]
    assert page.locator(".advice li").all_text_contents() == said
    assert [line for line in page.locator(".advice li").all() if line.is_visible()][5:] == []
    page.locator("summary", has_text="2 more").click()
    assert all(line.is_visible() for line in page.locator(".advice li").all())
    assert page.locator(".advice code").inner_text() == "instances: 2"
    text = page.locator("main").text_content() or ""
    for said in ("this host has no NVIDIA driver", value["command"], "A processor", "2.51.0", "8 GB", "asked for auto"):
        assert said in text


def test_the_same_result_gives_the_same_bytes_in_another_process(reports: Any, tmp_path: Path) -> None:
    """And nothing is left in the user's home, nor drawn with what is set there."""
    value, path = reports("pipeline")
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\n")
    saved = tmp_path / "result.json"
    saved.write_text(json.dumps(value))
    code = (
        "import sys, pathlib; from unified_backend.measuring.saved import read_result;"
        "from unified_backend.reports import write;"
        "write(read_result(pathlib.Path('result.json')), pathlib.Path('again.html'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {name: held for name, held in os.environ.items() if name != "MPLCONFIGDIR"} | {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
        "PYTHONHASHSEED": "7",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()
    assert {one.name for one in tmp_path.iterdir()} == {"matplotlibrc", "result.json", "again.html"}


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be written"):
        write(parse(_one()), tmp_path / "file" / "report.html")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    require()
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    with pytest.raises(Refused, match=r"pip install 'triton-unified-backend\[report\]'"):
        require()


def _axis(page: Page, key: str, which: str) -> Callable[[float], float]:
    """Value -> place in the drawing, as whoever reads the numbers along the axis would find it."""
    ticks = page.evaluate(
        """([id, across]) => [...document.querySelectorAll(`#${id} > g`)].map(tick => {
            const text = tick.querySelector('text'), mark = tick.querySelector('use');
            return text && mark && [text.textContent, (across ? mark.x : mark.y).baseVal.value];
        }).filter(Boolean)""",
        [f"{key}-{which}-axis", which == "x"],
    )
    values = [(float(text.replace(",", "")), place) for text, place in ticks]
    assert len(values) >= 2
    (first, start), (last, end) = values[0], values[-1]
    pitches = [(to - at) / (later - earlier) for (earlier, at), (later, to) in pairwise(values)]
    if len(values) > 2 and max(pitches) == pytest.approx(min(pitches), rel=0.02):
        return lambda value: start + (end - start) * (value - first) / (last - first)
    first, start = next(one for one in values if one[0] > 0)  # errors of 0 stand aside of a logarithmic axis
    return lambda value: start + (end - start) * math.log(value / first) / math.log(last / first)


def _table(page: Page, caption: str) -> list[list[dict[str, Any]]]:
    """The cells of the table with this caption: their text, and the number behind it."""
    return page.evaluate(  # type: ignore[no-any-return]
        """id => [...document.getElementById(id).closest('table').tBodies[0].rows].map(row =>
            [...row.cells].map(cell => ({
                text: cell.textContent.trim(),
                value: cell.querySelector('data') ? +cell.querySelector('data').value : null,
            })))""",
        caption,
    )


def _flat(pairs: Any) -> list[float]:
    return [value for pair in pairs for value in pair]


def _channels(colour: str) -> list[int]:
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(map(str, _channels(colour)))})"


def _linear(colour: str) -> Any:
    """Red, green and blue light, from 0 to 1."""
    parts = np.array(_channels(colour)) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _cielab(light: Any) -> Any:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(light, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _contrast(one: str, other: str) -> float:
    """As WCAG has it."""
    low, high = sorted(float(np.dot([0.2126, 0.7152, 0.0722], _linear(colour))) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)
