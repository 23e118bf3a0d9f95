"""Scales and numbers of axes: logarithmic where the values span more than a few doublings, in plain digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from unified_backend.reports.drawing import WIDTH, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["leave_room", "measured", "plain", "scale"]

_WIDE = 6.0  # times: below, equal steps show differences better
_NAME, _TICK = 18.0, 7.0  # pixels at the left of an axis: of its name, and between the numbers and the line
_ROOM = 1.12  # beyond the outermost values, so that markers are whole


def scale(axes: Axes, which: Literal["x", "y"], values: Sequence[float], ticks: int) -> None:
    """Fit the x or y axis to values that are 0 or more, with at most about so many numbers along it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > _WIDE
    if logarithmic:
        axes.set(**{f"{which}scale": "log"})
        low, high = low / _ROOM**1.5, high * _ROOM**1.5
        axis.set_major_locator(FixedLocator(_log_ticks(low, high, ticks)))
    else:
        low, high = 0.0, high * _ROOM or 1.0
        axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.set(**{f"{which}lim": (low, high)})


def leave_room(axes: Axes) -> None:
    """Narrow the axes by what the numbers and the name at their left need."""
    low, high = axes.get_ylim()
    numbers = max(text_width(plain(tick)) for tick in axes.get_yticks() if low <= tick <= high)
    left = _NAME + numbers + _TICK
    box = axes.get_position()
    axes.set_position((left / WIDTH, box.y0, box.x1 - left / WIDTH, box.height))


def _log_ticks(low: float, high: float, ticks: int) -> list[float]:
    """Of 1, 2, 5 a decade, or only 1 and 3, or every so many decades: the finest that is not too fine."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tried: list[list[float]] = [
        [digit * 10.0**exponent for exponent in exponents for digit in digits] for digits in ((1, 2, 5), (1, 3), (1,))
    ]
    tried += [[10.0**exponent for exponent in exponents if exponent % step == 0] for step in range(2, 20)]
    inside = [[value for value in values if low <= value <= high] for values in tried]
    return next((values for values in inside if len(values) <= ticks), inside[-1])


def plain(value: float) -> str:
    """A number as people write it: no zeros that say nothing, powers of ten only where zeros blur."""
    mantissa, power, exponent = measured(value).partition("e")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + power + exponent


def measured(value: float) -> str:
    """The same with three digits, of which the last may be 0: columns of it are read down."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(size)))}f}"
