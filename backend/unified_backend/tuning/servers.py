"""The servers of a search: of the config as it is, of the best so far, and of what is being tried."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from unified_backend.errors import MeasurementError
from unified_backend.forms.reference import ENGINES
from unified_backend.gpus import gpu_of
from unified_backend.measuring.inputs import Inputs
from unified_backend.measuring.perf_analyzer import Reading
from unified_backend.measuring.served import Point as Load
from unified_backend.measuring.served import Served, served
from unified_backend.measuring.subjects import Subject
from unified_backend.measuring.variants import Variant
from unified_backend.tuning.served_point import point_of, variant_of
from unified_backend.tuning.space import Point

__all__ = ["STOP_SECONDS", "Servers"]

STOP_SECONDS = 5.0  # of a server, measured on a busy machine


class Servers(contextlib.AbstractContextManager["Servers"]):
    """One server a point, each for as long as it is needed: two stay up, so that they can be compared in the end.

    Args:
        folder: an empty one, for repositories and logs.
        tool: perf_analyzer.
        data: the user's inputs.
        left: seconds that are left for a load.

    Raises:
        NotLoadedError: the model does not load as it is.
        Refused: the inputs do not fit.

    Attributes:
        base: the config as it is.
        load_seconds: that a server with the model took to start, the last time.
    """

    def __init__(
        self, subject: Subject, folder: Path, tool: Path, data: Path | None, left: Callable[[], float]
    ) -> None:
        self._subject = subject
        self._folder = folder
        self._tool = tool
        self._left = left
        self._open: dict[Point, tuple[ExitStack, Served]] = {}
        self._kept: Point | None = None
        began = time.monotonic()
        stack = ExitStack()
        try:
            self.default = stack.enter_context(served(subject, Variant(), self._place()))
            self.load_seconds = time.monotonic() - began
            self.base = point_of(self.default, subject.config)
            self.inputs: Inputs = self.default.inputs(data, {})
        except BaseException:
            stack.close()
            raise
        self._open[self.base] = (stack, self.default)

    def alone(self) -> float:
        """Milliseconds of a request to the config as it is, when there is no other."""
        self.default.ask(self.inputs, 1)
        return 1e3 * min(self.default.ask(self.inputs, 1) for _ in range(3))

    def measure(self, point: Point, concurrency: int, seconds: float) -> Reading:
        """One reading; the point's server is started if it is not up, and the last one stopped that is not kept.

        Args:
            seconds: that perf_analyzer is told to measure.

        Raises:
            NotLoadedError: the model does not load so.
            MeasurementError: it does not answer, or the engine cannot be used here.
        """
        one = self._served(point)
        reading, _ = one.measure(self._tool, Load(1, concurrency), self.inputs, seconds)
        return reading

    def keep(self, point: Point) -> None:
        """Have the server of a point stay up, in place of the one that was kept."""
        self._kept = point

    def point_seconds(self) -> float:
        """Of starting and stopping a server, beside its readings."""
        return self.load_seconds + STOP_SECONDS

    def _served(self, point: Point) -> Served:
        if point not in self._open:
            self._close([there for there in self._open if there not in (self.base, self._kept)])
            if (engine := ENGINES.get(point.engine)) and (reason := engine.unusable(gpu_of(self._subject.config))):
                raise MeasurementError(f"{point.engine} cannot be used", reason, "Leave it out")
            variant = variant_of(point, self.base, self._subject.config)
            began = time.monotonic()
            with ExitStack() as stack:
                ready = max(1.0, self._left())
                one = stack.enter_context(served(self._subject, variant, self._place(), ready_seconds=ready))
                one.ask(self.inputs, 1)
                self._open[point] = (stack.pop_all(), one)
            self.load_seconds = time.monotonic() - began
        return self._open[point][1]

    def _place(self) -> Path:
        place = self._folder / str(len(list(self._folder.iterdir())))
        place.mkdir()
        return place

    def _close(self, points: Sequence[Point]) -> None:
        for _, one in map(self._open.__getitem__, points):  # so that they end at the same time
            if one.server:
                one.server.signal(signal.SIGTERM)
        with ExitStack() as stack:
            for point in points:
                stack.push(self._open.pop(point)[0])

    def __exit__(self, *_: object) -> None:
        self._close(list(self._open))
