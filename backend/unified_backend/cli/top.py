"""`triton-unified top`: a running server watched through its metrics page."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unified_backend.amounts import amount
from unified_backend.cli.shown import print_facts, print_rows
from unified_backend.errors import ServerError, one_line
from unified_backend.server.metrics import fetch, metrics_url
from unified_backend.server.traffic import ModelTraffic, Traffic, traffic

__all__ = ["top"]

_COLUMNS = ("model", "engine", "req/s", "fail/s", "batch", "ms", "queue", "input", "infer", "output", "cache", "misses")
_NUMBERS = _COLUMNS[2:10]
_DETAILS = ("input", "output", "cache")  # that a narrow terminal has no room for
_WIDE = 110  # columns of one that has


def top(
    url: Annotated[
        str, typer.Option(metavar="URL", help="The server's metrics page; host:8002 will do.")
    ] = "http://127.0.0.1:8002/metrics",
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.2, max=3600, help="Between two looks at it.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One table, of one interval.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each interval.")] = False,
) -> None:
    """Watch a running server: for each model what it answers, how fast, in which batches and by which engine.

    Figures are of the last interval. `req/s` counts requests answered with an error too, `fail/s` these alone. `ms` is
    the mean time of a request in the server, of which `queue` to `output` are parts; `batch` the mean number of rows
    that the engine ran at once. Counted since the load are `cache`, what the cache held of the entries it asked for,
    and `misses`, requests outside every profile of a TensorRT engine.

    Exits with 0, at Ctrl-C too; 1 if there is no server, if it goes away, or if it is no Triton's metrics page; 2 if an
    option is wrong. Models of other backends are shown as far as Triton counts for them.

    Example:

    triton-unified top --url localhost:8002 --interval 5
    """
    url = metrics_url(url)
    console = Console(highlight=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        looks = _looks(url, interval)
        if as_json:
            for now in looks:
                typer.echo(json.dumps(_json(url, now)))
                if once:
                    return
        elif once or not console.is_terminal:
            now = next(looks)
            if now.restarted:
                raise ServerError(*_restarted(now.restarted))
            _print(console, now)
        else:
            _watch(console, url, looks)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _looks(url: str, interval: float) -> Iterator[Traffic]:
    """What the server did in each interval, as long as it is there.

    Raises:
        ServerError: it is not there, or goes away.
    """
    before = fetch(url)
    first = True
    while True:
        time.sleep(max(0.0, before.moment + interval - time.monotonic()))
        try:
            after = fetch(url)
        except ServerError as error:
            if not first:
                raise ServerError("the server went away", f"{error.what}: {error.why}", "Start it again") from None
            raise
        yield traffic(before, after)
        before, first = after, False


def _restarted(models: Sequence[str]) -> tuple[str, str, str]:
    return (
        f"the counters of {', '.join(map(one_line, models))} began again",
        "it was loaded anew meanwhile, or the server was started again",
        "Look again",
    )


def _watch(console: Console, url: str, looks: Iterator[Traffic]) -> None:
    with Live(Text(f"{url}: the first interval ..."), console=console, screen=False, auto_refresh=False) as live:
        for now in looks:
            live.update(_picture(url, now, console.width), refresh=True)


def _picture(url: str, now: Traffic, width: int) -> RenderableType:
    lines: list[RenderableType] = [Text(f"{url}  every {now.seconds:.1f} s  Ctrl-C ends it", style="dim")]
    lines.append(_table(now, width))
    lines += [Text(one_line(f"{name}: {value}")) for name, value in _machine(now).items()]
    if now.restarted:
        what, why, _ = _restarted(now.restarted)
        lines.append(Text(f"{what}: {why}", style="yellow"))
    return Group(*lines)


def _table(now: Traffic, width: int) -> RenderableType:
    if not now.models:
        return Text("no model is loaded")
    shown = [place for place, heading in enumerate(_COLUMNS) if width >= _WIDE or heading not in _DETAILS]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place in shown:
        number = _COLUMNS[place] in _NUMBERS
        table.add_column(_COLUMNS[place], justify="right" if number else "left", no_wrap=number, overflow="fold")
    for model in now.models:
        style = "red" if model.failures else "" if model.requests else "dim"
        cells = _cells(model)
        table.add_row(*(Text(one_line(cells[place])) for place in shown), style=style)
    return table


def _print(console: Console, now: Traffic) -> None:
    if console.is_terminal:
        console.print(_table(now, console.width))
    else:
        print_rows(_COLUMNS, map(_cells, now.models))
    print_facts(_machine(now))


def _cells(model: ModelTraffic) -> list[str]:
    parts = dataclasses.astuple(model.latency) if model.latency else (None,) * 5
    cache = " ".join(f"{count} {result}" for result, count in model.cache.items())
    return [
        f"{model.name}/{model.version}" if model.version else model.name,
        "+".join(model.engines) or "-",
        *(_number(value) for value in (model.requests, model.failures, model.batch, *parts)),
        cache or "-",
        str(model.profile_misses),
    ]


def _machine(now: Traffic) -> dict[str, str]:
    facts = {}
    for number, gpu in enumerate(now.gpus):
        busy = "-" if gpu.utilization is None else f"{gpu.utilization:.0%} busy"
        facts[f"GPU {number}"] = f"{busy}, memory {_share(gpu.memory_used, gpu.memory_total)}"
    if now.cpu_memory_total:
        facts["CPU memory"] = _share(now.cpu_memory_used, now.cpu_memory_total)
    return facts


def _share(used: int | None, total: int | None) -> str:
    return " of ".join("-" if value is None else amount(value) for value in (used, total))


def _number(value: float | None) -> str:
    """Three digits that count, or none where there is nothing to tell."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _json(url: str, now: Traffic) -> dict[str, Any]:
    def model(row: ModelTraffic) -> dict[str, Any]:
        return {
            "model": row.name,
            "version": row.version,
            "engines": list(row.engines),
            "requests_per_second": row.requests,
            "failures_per_second": row.failures,
            "mean_batch_size": row.batch,
            "latency_ms": dataclasses.asdict(row.latency) if row.latency else None,
            "cache": dict(row.cache),
            "profile_misses": row.profile_misses,
        }

    return {
        "url": url,
        "time": time.time(),
        "seconds": now.seconds,
        "models": [model(row) for row in now.models],
        "gpus": [dataclasses.asdict(gpu) for gpu in now.gpus],
        "cpu_memory": {"used": now.cpu_memory_used, "total": now.cpu_memory_total},
        "restarted": list(now.restarted),
    }
