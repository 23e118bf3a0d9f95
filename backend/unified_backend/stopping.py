"""A command that is told to stop ends as by an exception: what it was making is removed, what it started ends."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

__all__ = ["clean_up_when_stopped"]

_PATIENCE_SECONDS = 10.0  # as long as `docker stop` waits


def clean_up_when_stopped() -> None:
    """Raise `SystemExit` in the main thread at the first SIGINT, SIGTERM or SIGHUP.

    Those that follow would interrupt the cleaning up, and they do follow: a terminal sends one, its supervisor another.
    They are passed over for ten seconds, after which one ends the process at once. What the process was started to
    ignore, as by nohup, is ignored still.
    """
    first: list[float] = []

    def received(number: int, _frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise SystemExit(128 + number)
        if time.monotonic() - first[0] > _PATIENCE_SECONDS:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, received)
