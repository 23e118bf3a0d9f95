"""Variants side by side: throughput, memory, seconds to load, and how far their answers are from the source's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from unified_backend.measuring.result import Check, ServedVariant, Spread
from unified_backend.reports.drawing import Drawing, drawn
from unified_backend.reports.palette import Look, sentinel
from unified_backend.reports.rows import BAND, Row, bar, rows
from unified_backend.reports.scales import measured, plain, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bars", "errors"]


def bars(
    values: Mapping[str, Spread],
    looks: Mapping[str, Look],
    label: str,
    key: str,
    written: Callable[[float], str] = measured,
) -> Drawing | None:
    """One bar a variant, with a line over its rounds; None if there is no value.

    Args:
        values: id -> value; those without one are left out.
    """
    if not values:
        return None
    entries = [
        Row(
            name, written(spread.median), partial(_bar, spread=spread, look=looks[name], number=list(looks).index(name))
        )
        for name, spread in values.items()
    ]
    figure, axes = rows(entries, label)
    scale(axes, "x", [0.0, *(spread.high for spread in values.values())], 6)
    most, least = (pick(values, key=lambda name: values[name].median) for pick in (max, min))
    says = f"{label}: {written(values[most].median)} for {most}"
    if most != least:
        says += f", {written(values[least].median)} for {least}"
    return drawn(figure, key, f"{says}. The table below has all values.")


def _bar(axes: Axes, middle: float, spread: Spread, look: Look, number: int) -> None:
    bar(axes, middle, 0.0, spread.median, f"bar-{number}", color=look.colour)
    if spread.low < spread.high:
        axes.hlines(middle, spread.low, spread.high, color=sentinel("paper"), linewidth=3.2)
        axes.hlines(middle, spread.low, spread.high, color=sentinel("ink"), linewidth=1.4, gid=f"spread-{number}")


def errors(variants: Sequence[ServedVariant], looks: Mapping[str, Look], key: str) -> Drawing | None:
    """The largest error of each output and batch size, and what is accepted; None if nothing was verified."""
    verified = [variant for variant in variants if variant.verified]
    if not verified:
        return None
    sizes = [
        size for one in verified for check in one.verified for size in (check.max_rel, check.tolerance) if size > 0
    ] or [1.0]
    # Errors of 0 have no place on such an axis: they stand a decade below all others.
    floor = 10.0 ** (math.floor(math.log10(min(sizes))) - 1)
    exact = any(check.max_rel == 0 for one in verified for check in one.verified)
    entries = [
        Row(one.id, _said(one), partial(_marks, checks=one.verified, look=looks[one.id], floor=floor, key=number))
        for number, one in enumerate(verified)
    ]
    figure, axes = rows(entries, "largest error, relative to the largest value")
    low, high = (floor / 1.6 if exact else min(sizes) / 1.8), max(sizes) * 1.8
    _error_axis(axes, low, high, floor if exact else None)
    failed = [one.id for one in verified if not one.passed]
    says = f"Verification errors of {len(verified)} variants on a logarithmic axis; "
    says += f"beyond what is accepted: {', '.join(failed)}" if failed else "all within what is accepted"
    return drawn(figure, key, f"{says}. The table below has all values.")


def _said(variant: ServedVariant) -> str:
    worst = max(check.max_rel for check in variant.verified)
    return plain(worst) if variant.passed else f"{plain(worst)} FAILED"


def _error_axis(axes: Axes, low: float, high: float, exact: float | None) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first) / 6))
    decades = [10.0**exponent for exponent in range(last, first - 1, -step)]
    if exact is not None:
        decades = [exact, *(one for one in decades if one > 2 * exact)]
    axes.xaxis.set_major_locator(FixedLocator(decades))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(
            lambda value, _: "0" if value == exact else f"1e{round(math.log10(value))}" if value != 1 else "1"
        )
    )


def _marks(axes: Axes, middle: float, checks: Sequence[Check], look: Look, floor: float, key: int) -> None:
    accepted = sorted({check.tolerance for check in checks if check.tolerance > 0})
    axes.vlines(accepted, middle - BAND / 2, middle + BAND / 2, color=sentinel("ink"), gid=f"accepted-{key}")
    for passed in (True, False):
        places = [max(check.max_rel, floor) for check in checks if check.passed == passed]
        axes.plot(
            places,
            [middle] * len(places),
            linestyle="none",
            marker="o" if passed else "X",
            markersize=6 if passed else 9,
            color=look.colour if passed else sentinel("bad"),
            markeredgecolor=sentinel("paper"),
            markeredgewidth=0.8,
            clip_on=False,
            gid=f"checks-{key}-{'passed' if passed else 'failed'}",
        )
