"""One page of HTML: sections, the plots and tables in them, and the template that they are put in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_backend.amounts import amount
from unified_backend.measuring.result import PointResult, Result, ServedVariant, Spread
from unified_backend.reports import compared, curves, keys, palette, shares, tables
from unified_backend.reports.drawing import Drawing, styled
from unified_backend.reports.palette import Look
from unified_backend.reports.scales import measured
from unified_backend.reports.tables import Table

__all__ = ["page"]

_FOLDER = Path(__file__).parent
_FIRST_ADVICE = 5  # sentences that a reader sees at once; `bench` puts what changes most first


@dataclass(frozen=True)
class Plot:
    """Drawings that belong together, and the table of their data.

    Attributes:
        look: id of the variant that it is of, where it is of one.
        note: how to read it, where that is not plain.
    """

    title: str
    drawings: Sequence[Drawing]
    table: Table
    look: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """All about one model.

    Attributes:
        key: unique in the page, for links.
        facts: what was best, in words.
        looks: id of each variant -> id of its mark's symbol.
        numbered: the curves' points carry their concurrency.
    """

    key: str
    name: str
    facts: Sequence[tuple[str, str, str]]
    looks: dict[str, str]
    curves: Sequence[Plot]
    numbered: bool
    shares: Sequence[Plot]
    steps: Sequence[Plot]
    served: Table
    compared: Table
    plots: Sequence[Plot]


def page(result: Result) -> str:
    """The HTML of a report."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with styled():
        sections = [
            _section(result, model, f"m{number}")
            for number, model in enumerate(result.models, 1)
            if result.variants_of(model)
        ]
        symbols = [
            keys.of_variant(look, f"{section.key}-key-{number}")
            for section in sections
            for number, look in enumerate(palette.looks(result.variants_of(section.name)).values())
        ]
        symbols += [keys.of_part(part) for part in shares.PARTS]
    return environment.get_template("page.html.jinja").render(
        result=result,
        sections=sections,
        symbols=symbols,
        parts={name: meaning for name, (_, meaning) in shares.PARTS.items()},
        light=palette.LIGHT,
        dark=palette.DARK,
        patterns=palette.PATTERNS,
        css=(_FOLDER / "page.css").read_text(encoding="ascii"),
        machine=_machine(result),
        first_advice=_FIRST_ADVICE,
        skipped={
            why: [one.what for one in result.skipped if one.why == why]
            for why in dict.fromkeys(one.why for one in result.skipped)
        },
        took=_took(result.seconds),
    )


def _section(result: Result, model: str, key: str) -> Section:
    variants = result.variants_of(model)
    looks = palette.looks(variants)
    points = [point for variant in variants for point in result.points_of(variant)]
    told = [variant for variant in variants if any(point.parts for point in result.points_of(variant))]
    return Section(
        key=key,
        name=model,
        facts=_facts(points, variants),
        looks={name: f"{key}-key-{number}" for number, name in enumerate(looks)},
        curves=_curves(points, looks, key),
        numbered=len(looks) <= curves.LABELLED,
        shares=[
            Plot(
                variant.id,
                _some(shares.shares(result.points_of(variant), f"{key}-parts-{number}")),
                tables.parts(
                    result.points_of(variant), f"Parts of a request's time with {variant.id}, in milliseconds"
                ),
                variant.id,
            )
            for number, variant in enumerate(told)
        ],
        steps=[
            Plot(
                variant.id,
                _some(shares.waterfall(result.points_of(variant), f"{key}-steps-{number}")),
                tables.steps(result.points_of(variant), f"Time in each step with {variant.id}, in milliseconds"),
                variant.id,
            )
            for number, variant in enumerate(variants)
            if any(point.steps for point in result.points_of(variant))
        ],
        served=tables.served(variants, "What was served"),
        compared=tables.compared(result, variants, "Variants side by side"),
        plots=_plots(result, variants, looks, key),
    )


def _curves(points: Sequence[PointResult], looks: dict[str, Look], key: str) -> list[Plot]:
    plots = []
    for batch in sorted({point.batch for point in points}):
        own = [point for point in points if point.batch == batch]
        drawings = [
            drawing
            for percentile in ("p50", "p99")
            if (drawing := curves.curves(own, looks, percentile, f"{key}-b{batch}-{percentile}"))
        ]
        plots.append(Plot(f"Batch {batch}", drawings, tables.loads(own, f"Throughput and latency at batch {batch}")))
    return plots


def _plots(result: Result, variants: Sequence[ServedVariant], looks: dict[str, Look], key: str) -> list[Plot]:
    best = {
        variant.id: max(points, key=lambda point: point.throughput.median)
        for variant in variants
        if (points := result.points_of(variant))
    }
    speeds = {name: point.throughput for name, point in best.items()}
    memory = {one.id: _single(one.memory_bytes / 1e6) for one in variants if one.memory_bytes is not None}
    load = {one.id: _single(one.load_seconds) for one in variants if one.load_seconds is not None}
    plots = [
        (
            "Throughput",
            compared.bars(speeds, looks, "most inferences a second", f"{key}-throughput"),
            tables.best(best, "Where each variant had the most throughput"),
            "The line over a bar's end spans the quartiles of the rounds.",
        ),
        (
            "Verification",
            compared.errors(variants, looks, f"{key}-errors"),
            tables.checks(variants, "Answers compared with the source's"),
            "A dot for each output and batch size; the upright line is what is accepted, a cross is beyond it.",
        ),
        (
            "Memory",
            compared.bars(memory, looks, "memory after loading, MB", f"{key}-memory", lambda mb: amount(mb * 1e6)),
            tables.memory(variants, "Memory of the server's processes for the model, after loading"),
            "",
        ),
        (
            "Loading",
            compared.bars(load, looks, "seconds to load", f"{key}-load", lambda seconds: f"{measured(seconds)} s"),
            tables.load_seconds(variants, "From the request to load until the model is ready"),
            "",
        ),
    ]
    return [Plot(title, [drawing], table, note=note) for title, drawing, table, note in plots if drawing]


def _facts(points: Sequence[PointResult], variants: Sequence[ServedVariant]) -> list[tuple[str, str, str]]:
    """What, its value, and where it was measured; of variants that answer as the source does."""
    passed = {variant.id for variant in variants if variant.passed}
    sound = [point for point in points if point.variant in passed]
    if not sound:
        return []
    most = max(sound, key=lambda point: point.throughput.median)
    latencies = [
        f"{name} {measured(one.median)} ms" for name in ("p50", "p99") if (one := most.latency(name)) is not None
    ]
    facts = [("Most throughput", f"{_speed(most)}", "; ".join([_where(most), ", ".join(latencies)]))]
    timed = [(one.median, point) for point in sound if (one := point.latency("p50")) is not None]
    if timed:
        p50, quick = min(timed, key=lambda one: one[0])
        facts.append(("Shortest latency", f"{measured(p50)} ms (p50)", f"{_where(quick)}; {_speed(quick)}"))
    return facts


def _where(point: PointResult) -> str:
    return f"{point.variant}, batch {point.batch}, concurrency {point.concurrency}"


def _speed(point: PointResult) -> str:
    return f"{measured(point.throughput.median)} inferences a second"


def _machine(result: Result) -> list[tuple[str, str]]:
    rows = []
    for name, value in result.machine.items():
        if name == "memory_bytes" and isinstance(value, int | float):
            rows.append(("memory", amount(value)))
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value)) or "none"))
        elif value is not None:
            rows.append((name.replace("_", " "), str(value)))
    return rows


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{measured(seconds)} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _some(drawing: Drawing | None) -> list[Drawing]:
    return [drawing] if drawing else []


def _single(value: float) -> Spread:
    return Spread(value, value, value)
