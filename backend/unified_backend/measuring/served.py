"""A variant while it is served: where it answers, what its load found, and one point measured.

with served(subject, variant, folder) as one:
    inputs = one.inputs(data=None, shapes={})
    reading, counts = one.measure(tool, Point(batch=1, concurrency=4), inputs, seconds=3.0)
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unified_backend.errors import MeasurementError, ServerError
from unified_backend.measuring.client import Client
from unified_backend.measuring.counts import Counts, counted
from unified_backend.measuring.inputs import Inputs, choose_inputs
from unified_backend.measuring.perf_analyzer import Load, Reading, measure
from unified_backend.measuring.result import Check, ServedVariant
from unified_backend.measuring.serving import serving
from unified_backend.measuring.stages import divided, steps_of, worked
from unified_backend.measuring.subjects import Subject
from unified_backend.measuring.variants import Variant, write_repository
from unified_backend.measuring.verified import verified
from unified_backend.server.metrics import Page, fetch
from unified_backend.server.run import RunningServer
from unified_backend.tensors import data_type

__all__ = ["Point", "Served", "running", "served"]

_LOADED = re.compile(r"unified: loaded (model=[^\n\"]*)")
_PAIR = re.compile(r"(\S+?)=(\S+)")
_MADE = re.compile(r"\b(\w+)=made\b")


@dataclass(frozen=True)
class Point:
    """A load: samples in a request, and requests in flight."""

    batch: int = 1
    concurrency: int = 1


@dataclass(frozen=True)
class Served:
    """A model that answers, and all that is asked about it.

    Attributes:
        name: of the model that requests go to.
        url: of the protocol's endpoint.
        config: the model's, completed.
        loads: of each instance of each model: the pairs of the line that its load logs; none of a server that was
            running already.
        server: of this process; None for one that was running already.
        began: when it was started, in seconds since 1970.
    """

    name: str
    url: str
    protocol: str
    client: Client
    config: Mapping[str, Any]
    folder: Path
    subject: Subject | None = None
    variant: Variant = field(default_factory=Variant)
    loads: Sequence[Mapping[str, str]] = ()
    server: RunningServer | None = None
    began: float = 0.0

    @property
    def max_batch_size(self) -> int:
        """Of the model; 0 where requests have no batch dimension."""
        return int(self.config.get("max_batch_size") or 0)

    def inputs(self, data: Path | None, shapes: Mapping[str, Sequence[int]]) -> Inputs:
        """Samples that the model was seen to answer.

        Raises:
            Refused: the data does not fit, or nothing could be made up.
        """
        samples = self.subject.samples if self.subject else []
        return choose_inputs(self.config, data, samples, shapes, lambda *asked: self.client.infer(self.name, *asked))

    def ask(self, inputs: Inputs, batch: int) -> float:
        """Send one request, and give the seconds that it took.

        Raises:
            MeasurementError: it was not answered.
        """
        feeds = inputs.feeds(batch)
        began = time.perf_counter()
        self.client.infer(self.name, feeds, inputs.types)
        return time.perf_counter() - began

    def ask_at_once(self, inputs: Inputs, batch: int, count: int) -> float:
        """Send so many requests at once, twice, and give the seconds that the second time took.

        Raises:
            MeasurementError: one was not answered.
        """
        feeds = inputs.feeds(batch)

        def ask(client: Client) -> None:
            client.infer(self.name, feeds, inputs.types)

        with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
            clients = [stack.enter_context(Client(self.url, self.protocol)) for _ in range(count)]
            list(pool.map(ask, clients))
            began = time.perf_counter()
            list(pool.map(ask, clients))
            return time.perf_counter() - began

    def measure(self, tool: Path, point: Point, inputs: Inputs, seconds: float) -> tuple[Reading, Counts]:
        """One reading of a point, and what the server counted meanwhile.

        Args:
            seconds: that it lasts, whatever the latency turns out to be: see `enough_seconds`.

        Raises:
            MeasurementError: perf_analyzer saw no request end.
        """
        file = self.folder / f"{self.name}-{point.batch}.json"
        if not file.exists():
            inputs.write(file, point.batch)
        load = Load(
            self.name,
            self.url,
            self.protocol,
            point.concurrency,
            point.batch,
            str(file),
            output_bytes=_output_bytes(self.config),
        )
        steps = self.subject.models[0].steps if self.subject else ()
        # With more in flight, batches overlap, and what Triton counts as `infer` is not all of the work.
        looked = self._metrics() if steps or point.concurrency == 1 else None
        before = self.client.statistics()
        reading = measure(tool, load, seconds, lengthen=False)
        names = [model.name for model in self.subject.models] if self.subject else [self.name]
        counts = counted(before, self.client.statistics(), names, self._instances)
        now = self._metrics() if looked else None
        if looked is None or now is None:
            return reading, counts
        work = worked(looked, now)
        own = work.get(self.name, {})
        if steps:
            return reading, replace(counts, steps=steps_of(reading.parts, own, steps))
        told = [replace(step, parts=divided(step.parts, work.get(step.model, {}))) for step in counts.steps]
        return replace(reading, parts=divided(reading.parts, own)), replace(counts, steps=told)

    def _metrics(self) -> Page | None:
        """What a server of this process tells beside its statistics, if it was built with metrics."""
        with suppress(ServerError):
            return fetch(f"http://{self.server.options.url('metrics')}/metrics") if self.server else None
        return None

    def _instances(self, model: str) -> int:
        groups = self.client.config(model).get("instance_group") or []
        return sum(int(group.get("count") or 1) for group in groups) or 1

    def facts(self, ident: str, notes: Sequence[str] = ()) -> ServedVariant:
        """What was served, and what its load found."""
        found = [load for load in self.loads if not load["format"].startswith("pipeline")] or list(self.loads)
        engines = list(dict.fromkeys(load["engine"] for load in found))
        kinds = list(dict.fromkeys(load["computes_in"].replace("-", " ") for load in found))
        made = sorted({kind for load in self.loads for kind in load.get("made", "").split()})
        notes = [*notes, f"loaded cold, without {', '.join(made)} in the cache"] if made else list(notes)
        return ServedVariant(
            ident,
            self.name,
            self.variant.engine or ("auto" if self.subject else "as served"),
            ", ".join(engines) or "as served",
            self.variant.precision or "as it came",
            ", ".join(kinds) or "not known",
            self._instances(self.name) if not self.is_ensemble else self.variant.instances or 1,
            max((int(load["threads"]) for load in found), default=0),
            self.max_batch_size,
            max((_seconds(load) for load in self.loads), default=None),
            self._memory(),
            self._verified(),
            notes,
        )

    @property
    def is_ensemble(self) -> bool:
        """Whether Triton itself runs its steps."""
        return self.config.get("platform") == "ensemble"

    def _memory(self) -> int | None:
        """Proportional set size of all that the server started: its stubs, and what engines run apart."""
        if self.server is None:
            return None
        total = 0
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                if int(entry.name) != self.server.pid and os.getpgid(int(entry.name)) == self.server.pid:
                    line = re.search(r"^Pss:\s+(\d+) kB", (entry / "smaps_rollup").read_text(), re.MULTILINE)
                    total += 1024 * int(line[1]) if line else 0
        return total or None

    def _verified(self) -> list[Check]:
        if self.subject is None:
            return []
        members = {member.name for model in self.subject.models for member in model.members}
        return verified({load["model"] for load in self.loads}, members, self.began)


_OPEN, _STRING = 256, 64  # taken for an output's open dimension, and for a string's bytes


@contextmanager
def served(
    subject: Subject, variant: Variant, folder: Path, protocol: str = "grpc", ready_seconds: float = 3600.0
) -> Iterator[Served]:
    """A server of its own with a variant of a subject; it lives as long as the block.

    Args:
        folder: an empty one, for its repository and log.
        ready_seconds: that the loads may take.

    Raises:
        NotLoadedError: a model does not load.
        MeasurementError: the server does not start.
    """
    write_repository(subject, variant, folder / "models")
    began = time.time()
    with serving(folder / "models", folder, own_cache=False, ready_seconds=ready_seconds) as server:
        url = server.options.url("http" if protocol == "http" else "grpc")
        with Client(url, protocol) as client:
            loads = _loads(server.options.log)
            config = client.config(subject.name)
            yield Served(
                subject.name, url, protocol, client, config, folder, subject, variant, loads, server, began - 1
            )


@contextmanager
def running(name: str, url: str, folder: Path, protocol: str = "grpc") -> Iterator[Served]:
    """A model of a server that runs already.

    Raises:
        MeasurementError: it does not answer, or has no such model.
    """
    with Client(url, protocol) as client:
        yield Served(name, url, protocol, client, client.config(name), folder)


def _loads(log: Path | None) -> list[dict[str, str]]:
    """The lines of loads in a server's log."""
    text = log.read_text(errors="replace") if log else ""
    made: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := re.search(r"unified: (?:INFO )?(?:described|loaded) model=(\S+)", line):
            made.setdefault(found[1], []).extend(_MADE.findall(line))
    # The first of a name: `engine=openvino`, and later `engine=hit`, of its entry in the cache.
    rows = [dict(reversed(_PAIR.findall(line))) for line in _LOADED.findall(text)]
    if text and not rows:
        raise MeasurementError("no load is in the server's log", text[-600:], "Report it")
    return [{**row, "made": " ".join(dict.fromkeys(made.get(row["model"], [])))} for row in rows]


def _output_bytes(config: Mapping[str, Any]) -> int:
    """Of the largest output of a sample, for its shared memory; a guess where dimensions are open."""
    sizes = [0]
    for row in config.get("output") or []:
        kind = data_type(str(row["data_type"]))
        item = _STRING if kind is None or kind.triton in ("STRING", "BYTES") else kind.numpy.itemsize
        sizes.append(item * math.prod(int(size) if int(size) > 0 else _OPEN for size in row["dims"]))
    return max(sizes)


def _seconds(load: Mapping[str, str]) -> float:
    """Of the phases of an instance's load."""
    return round(sum(float(value) for name, value in load.items() if re.fullmatch(r"\w+_s", name)), 3)
