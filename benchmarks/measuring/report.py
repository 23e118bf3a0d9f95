"""What the measurements of the grid say: ratios, the promises they keep or break, and the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

from rich.table import Table
from unified_backend.measuring.perf_analyzer import Reading

__all__ = ["IN_PROCESS", "PROMISES", "Cell", "Promise", "Ratio", "Verdict", "table"]

IN_PROCESS = "in-process"


@dataclass(frozen=True)
class Ratio:
    """Of the ratios that single rounds gave: the median, and the quartiles, between which their middle half lies."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


@dataclass
class Cell:
    """One row of the grid.

    Attributes:
        readings: by backend, one a round; the rounds of all backends were measured in turn.
    """

    model: str
    protocol: str
    concurrency: int
    readings: dict[str, list[Reading]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model} {self.protocol} c{self.concurrency}"

    def ratio(self, above: str, below: str, quantity: Callable[[Reading], float]) -> Ratio | None:
        """`above` to `below`, round by round, because what else the machine does changes from one round to the next."""
        rounds = list(zip(self.readings.get(above, ()), self.readings.get(below, ()), strict=False))
        ratios = [quantity(a) / quantity(b) for a, b in rounds]
        if len(ratios) < 2:
            return Ratio(*ratios * 3) if ratios else None
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        return Ratio(middle, low, high)

    def speed(self, above: str, below: str) -> Ratio | None:
        """Throughput of `above` as a multiple of `below`'s."""
        return self.ratio(above, below, lambda reading: reading.throughput)

    def latency(self, above: str, below: str) -> Ratio | None:
        """Median latency of `above` as a multiple of `below`'s."""
        return self.ratio(above, below, lambda reading: reading.p50)


@dataclass(frozen=True)
class Promise:
    """A figure that the unified backend keeps to.

    Attributes:
        covers: the cells it speaks of.
        figure: what is compared with `bound`; None where it was not measured.
        at_least: whether `bound` is the lowest (or else the highest) allowed.
    """

    text: str
    covers: Callable[[Cell], bool]
    figure: Callable[[Cell], Ratio | None]
    bound: float
    at_least: bool = True

    def broken_by(self, cell: Cell) -> bool:
        """Whether `cell` is covered, was measured, and is on the wrong side."""
        ratio = self.figure(cell) if self.covers(cell) else None
        return ratio is not None and (ratio.median < self.bound if self.at_least else ratio.median > self.bound)

    def verdict(self, cells: Iterable[Cell]) -> Verdict | None:
        """What `cells` say; None if none of them speaks of it."""
        measured = [(cell, ratio) for cell in cells if self.covers(cell) and (ratio := self.figure(cell))]
        if not measured:
            return None
        broken = [(cell, ratio) for cell, ratio in measured if self.broken_by(cell)]
        worst = (min if self.at_least else max)(measured, key=lambda pair: pair[1].median)
        shown = broken or [worst]
        figures = ", ".join(f"{cell.name} {ratio}" for cell, ratio in shown)
        return Verdict(self.text, not broken, len(measured), figures)


@dataclass(frozen=True)
class Verdict:
    """Whether a promise is kept.

    Attributes:
        cells: how many speak of it.
        figures: of the cells that break it, or of the one that is nearest to.
    """

    text: str
    kept: bool
    cells: int
    figures: str


PROMISES = (
    Promise(
        "never below the naive model, within 5 %",
        covers=lambda cell: True,
        figure=lambda cell: cell.speed("unified", "naive"),
        bound=0.95,
    ),
    Promise(
        "at least 1.8 times naive on 0.6 MB inputs, concurrency 4, shared memory",
        covers=lambda cell: (cell.model, cell.protocol, cell.concurrency) == ("thin", "shm", 4),
        figure=lambda cell: cell.speed("unified", "naive"),
        bound=1.8,
    ),
    Promise(
        "at least 0.96 of ONNX Runtime in process on ResNet-50",
        covers=lambda cell: cell.model == "resnet50",
        figure=lambda cell: cell.speed("unified", IN_PROCESS),
        bound=0.96,
    ),
    Promise(
        "median latency of the tiny MLP at concurrency 1 at most 1.3 times that of a constant",
        covers=lambda cell: cell.model == "mlp" and cell.concurrency == 1,
        figure=lambda cell: cell.latency("unified", "constant"),
        bound=1.3,
        at_least=False,
    ),
)


def table(cells: Sequence[Cell]) -> Table:
    """One row a cell: naive in absolute figures, the others as medians of per-round ratios with their spread."""
    made = Table(title="Throughput as a multiple of naive's, or of ONNX Runtime's in process: median [quartiles]")
    for heading in ("model", "protocol"):
        made.add_column(heading)
    for heading in (
        "c",
        "naive/s",
        "naive p50 ms",
        "unified",
        "concat",
        "constant",
        "unified/in-process",
        "p50/constant",
    ):
        made.add_column(heading, justify="right", no_wrap=True)
    for cell in cells:
        naive = cell.readings.get("naive", [])
        made.add_row(
            cell.model,
            cell.protocol,
            str(cell.concurrency),
            f"{median(reading.throughput for reading in naive):.1f}" if naive else "",
            f"{median(reading.p50 for reading in naive):.3f}" if naive else "",
            *(str(cell.speed(backend, "naive") or "") for backend in ("unified", "concat", "constant")),
            str(cell.speed("unified", IN_PROCESS) or ""),
            str(cell.latency("unified", "constant") or ""),
        )
    return made
