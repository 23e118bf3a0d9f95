"""Requests of a model with stages: one batch is pre-processed while the engine runs the one before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from unified_backend.engines import EachRunner
from unified_backend.errors import UnifiedError
from unified_backend.serving.executor import Executor, Feeds
from unified_backend.serving.sending import Sender

__all__ = ["EachExecutor"]

_WAITING = 1  # prepared batches that wait for the engine; more would only hide that it is what takes the time


class EachExecutor:
    """Answers the requests of a model instance whose runner keeps the requests of a batch apart.

    A thread of its own runs the second half of the work and sends the responses, while Triton hands over the next
    requests to be prepared. A lone request that finds nothing in flight is answered at once, for a response sender
    costs another round trip to the server.

    Args:
        pb_utils: Triton's module.
        plain: reads requests and makes responses.
        runner: prepares and answers them.
    """

    def __init__(self, pb_utils: Any, plain: Executor, runner: EachRunner) -> None:
        self._plain, self._runner = plain, runner
        self._sender = Sender(pb_utils)
        self._prepared: queue.Queue[_Batch | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._finish_batches, name="unified-finish", daemon=True)
        self._thread.start()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """The responses, or None: then they are sent when they are there."""
        if len(requests) == 1 and self._sender.idle:
            responses: list[Any] = [None]
            for position, response in self._finished(self._batch(requests, responses.__setitem__)):
                responses[position] = response
            return responses
        self._sender.expect(len(requests))
        self._prepared.put(
            self._batch(requests, lambda position, response: self._sender.send(requests[position], response))
        )
        return None

    def close(self) -> None:
        """Answer what is in flight, and stop."""
        self._prepared.put(None)
        self._thread.join()
        self._plain.close()

    def _batch(self, requests: Sequence[Any], fail: Callable[[int, Any], None]) -> _Batch:
        """The requests that can be read, prepared; `fail` takes the responses of the others."""
        batch = _Batch()
        for position, request in enumerate(requests):
            try:
                feeds = self._plain.read(request)
            except Exception as error:  # noqa: BLE001 - here one request's fault is kept from the others
                fail(position, self._plain.failure(error))
                continue
            batch.members.append((position, request))
            batch.feeds.append(feeds)
        try:
            batch.prepared = self._runner.prepare(batch.feeds)
        except Exception as error:  # noqa: BLE001 - as above
            batch.error = error
        return batch

    def _finished(self, batch: _Batch) -> Iterator[tuple[int, Any]]:
        """The response to each request of a batch, by its position."""
        wanted = [self._plain.wanted(request) for _, request in batch.members]
        names = list(dict.fromkeys(name for some in wanted for name in some))
        try:
            if batch.error:
                raise batch.error
            answers = self._runner.finish(batch.prepared, names)
        except Exception as error:  # noqa: BLE001 - as above
            for position, _ in batch.members:
                yield position, self._plain.failure(error)
            return
        rows = 0
        for (position, request), feeds, answer in zip(batch.members, batch.feeds, answers, strict=True):
            if isinstance(answer, UnifiedError):
                yield position, self._plain.failure(answer)
            else:
                rows += self._plain.rows(feeds)
                yield position, self._plain.response(request, answer)
        if rows:
            self._plain.count(rows)

    def _finish_batches(self) -> None:
        while (batch := self._prepared.get()) is not None:
            requests = dict(batch.members)
            for position, response in self._finished(batch):
                self._sender.send(requests[position], response)


class _Batch:
    """Requests of one call of `execute`, as far as they are.

    Attributes:
        members: each with its position in the call.
        feeds: the inputs of each.
        prepared: by the runner.
        error: in place of it.
    """

    def __init__(self) -> None:
        self.members: list[tuple[int, Any]] = []
        self.feeds: list[Feeds] = []
        self.prepared: Any = None
        self.error: Exception | None = None
