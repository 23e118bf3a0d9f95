"""An executor that is exchanged for a better one between two calls, with no request lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["Executes", "Swap"]


class Executes(Protocol):
    """What answers requests."""

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """The responses; None where they are sent later."""
        ...

    def close(self) -> None:
        """Answer what is in flight, and free what is kept."""
        ...


class Swap:
    """Hands each call to whichever executor is the current one.

    The one that was exchanged is closed when the next call comes, by the thread that it comes on: only then has the
    server copied its last answers out, and it is the thread that the executor has always run on.

    Args:
        executor: the first.
        close_engine: frees what the executor runs; called after its own `close`.
    """

    def __init__(self, executor: Executes, close_engine: Callable[[], None]) -> None:
        self._current, self._close_engine = executor, close_engine
        self._retired: list[tuple[Executes, Callable[[], None]]] = []
        self._lock = threading.Lock()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """What the current executor answers."""
        with self._lock:
            if self._retired:
                self._close_retired()
            return self._current.execute(requests)

    def exchange(self, executor: Executes, close_engine: Callable[[], None]) -> None:
        """Let `executor` answer from the next call on; waits for the call that is being answered."""
        with self._lock:
            self._retired.append((self._current, self._close_engine))
            self._current, self._close_engine = executor, close_engine

    def close(self) -> None:
        """Close every executor and free every engine."""
        with self._lock:
            self._close_retired()
            self._current.close()
            self._close_engine()

    def _close_retired(self) -> None:
        for executor, close_engine in self._retired:
            executor.close()
            close_engine()
        self._retired.clear()
