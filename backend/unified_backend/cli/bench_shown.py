"""How `bench` shows what it does and what it found."""

from __future__ import annotations

import time
from types import TracebackType

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from unified_backend.amounts import amount
from unified_backend.cli.shown import print_facts, print_rows
from unified_backend.errors import one_line
from unified_backend.measuring.compare import Comparison
from unified_backend.measuring.opening import Candidate
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.result import PointResult, Result, ServedVariant, Skipped
from unified_backend.measuring.run import Watch

__all__ = ["Shown", "clock", "print_comparison", "print_result"]

_VARIANTS = ("variant", "engine", "computes in", "threads", "load s", "memory", "max rel error")
_POINTS = ("variant", "batch", "concurrency", "inferences/s", "low", "high", "p50 ms", "p99 ms", "queue ms", "busy")
_COMPARED = ("variant", "batch", "concurrency", "before/s", "now/s", "ratio", "verdict")


def clock(seconds: float) -> str:
    """`3:20`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}"


class Shown(Watch):
    """A bar on a terminal, and lines elsewhere; on standard error, which leaves standard output to the result."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._began = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Shown:
        self._progress.start()
        self._task = self._progress.add_task("starting", total=None, left="")
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def loading(self, candidate: Candidate, number: int, total: int) -> None:
        """A server is being started, and its models loaded."""
        self._shows(f"loading {number} of {total}: {candidate.id}", None, "")
        self._says(f"loading: {number} of {total}, {candidate.id}")

    def loaded(self, variant: ServedVariant, inputs: str) -> None:
        """It answers."""
        seconds = "" if variant.load_seconds is None else f" load_s={variant.load_seconds:.1f}"
        self._prints(f"loaded: {variant.id} engine={variant.engine}{seconds} inputs={inputs}")

    def skipped(self, one: Skipped) -> None:
        """Something cannot be measured."""
        self._prints(f"skipped: {one.what}: {one.why}")

    def estimated(self, seconds: float, guessed: int) -> None:
        """What the rest takes."""
        beside = f", if the {guessed} variants to come are like these" if guessed else ""
        self._prints(f"estimate: about {clock(seconds)} min from here{beside}")
        self._began = time.monotonic()

    def measuring(self, what: str, round_: int, done: float, total: float) -> None:
        """A point is being measured."""
        self._shows(f"round {round_}: {what}", (done, total), f"about {clock(self._left(done, total))} left")

    def measured(self, what: str, reading: Reading, done: float, total: float) -> None:
        """It was."""
        figures = f"inferences/s={reading.throughput:.1f} p50_ms={reading.p50:.2f} p99_ms={reading.p99:.2f}"
        self._says(f"measured: {what} {figures} left={clock(self._left(done, total))}")

    def _left(self, done: float, total: float) -> float:
        """The estimate, held to how it fared so far; at first that says nothing."""
        elapsed = time.monotonic() - self._began
        return (elapsed / done if done > 0.2 * total else 1.0) * (total - done)

    def _shows(self, text: str, done: tuple[float, float] | None, left: str) -> None:
        if self._task is not None:
            behind, total = done or (0, None)
            self._progress.update(
                self._task, description=one_line(text), completed=behind, total=total, left=left, refresh=True
            )

    def _says(self, text: str) -> None:
        """A line where there is no bar."""
        if not self._console.is_terminal:
            self._prints(text)

    def _prints(self, text: str) -> None:
        self._progress.console.print(one_line(text), markup=False, soft_wrap=True)


def print_result(done: Result) -> None:
    """The tables, what was skipped, and the advice."""
    print_facts(
        {
            "subject": f"{done.subject['name']} ({done.subject['kind']})",
            "inputs": done.inputs,
            "machine": f"{done.machine['cpu']}, {done.machine['cores']} cores"
            + "".join(f", {name}" for name in done.machine["gpu"]),
            "took": f"{clock(done.seconds)} min"
            + (f" (estimate {clock(done.estimate_seconds)})" if done.estimate_seconds else ""),
        }
    )
    typer.echo("")
    print_rows(_VARIANTS, map(_variant_cells, done.variants), right=_VARIANTS[3:])
    typer.echo("")
    print_rows(_POINTS, map(_point_cells, done.points), right=_POINTS[1:])
    for row in done.variants:
        for note in row.notes:
            typer.echo(one_line(f"note: {row.id}: {note}"))
    for one in done.skipped:
        typer.echo(one_line(f"skipped: {one.what}: {one.why}"))
    for text in done.advice:
        typer.echo(one_line(f"advice: {text}"))


def _variant_cells(row: ServedVariant) -> list[str]:
    errors = [one.max_rel for one in row.verified]
    return [
        row.id,
        row.engine,
        row.computes_in,
        str(row.threads or "-"),
        "-" if row.load_seconds is None else f"{row.load_seconds:.1f}",
        "-" if row.memory_bytes is None else amount(row.memory_bytes),
        f"{max(errors):.1e}" if errors else "-",
    ]


def _point_cells(row: PointResult) -> list[str]:
    speed = row.throughput
    queue = row.parts.get("queue")
    return [
        row.variant,
        str(row.batch),
        str(row.concurrency),
        *(f"{value:.1f}" for value in (speed.median, speed.low, speed.high)),
        *(f"{found.median:.2f}" if (found := row.latency(name)) else "-" for name in ("p50", "p99")),
        "-" if queue is None else f"{queue:.2f}",
        "-" if row.busy is None else f"{row.busy:.0%}",
    ]


def print_comparison(comparison: Comparison) -> None:
    """What differs between the two runs, and what became of each point."""
    typer.echo("")
    for line in comparison.differences:
        typer.echo(one_line(f"differs: {line}"))
    rows = [
        [
            row.variant,
            str(row.batch),
            str(row.concurrency),
            f"{row.before.median:.1f}",
            f"{row.now.median:.1f}",
            f"{row.ratio:.2f}",
            row.verdict,
        ]
        for row in comparison.rows
    ]
    print_rows(_COMPARED, rows, right=_COMPARED[1:-1])
    typer.echo(one_line(comparison.summary))
