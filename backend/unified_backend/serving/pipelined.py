"""Several batches in flight on a GPU: requests in, and responses sent when their batch is done."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from unified_backend.engines.device import DeviceRunner, Pending
from unified_backend.serving.executor import Executor, Feeds

__all__ = ["PipelinedExecutor"]

logger = logging.getLogger(__name__)

_WAITING = 2  # calls of `execute` that wait for the thread which starts batches; more would only hide a full GPU


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Requests that run together, and the batch that they became."""

    members: Sequence[tuple[Any, int]]  # each with its rows
    pending: Pending


class PipelinedExecutor:
    """Answers the requests of a model instance on a GPU.

    One thread starts batches (staging, copies, launch), another waits for them and sends the responses, and Triton
    hands over the next requests meanwhile. A lone request on an idle GPU is answered at once: a response sender costs
    another round trip to the server.

    Args:
        plain: reads and answers single requests.
        runner: the engine.
    """

    def __init__(self, pb_utils: Any, plain: Executor, runner: DeviceRunner) -> None:
        self._plain = plain
        self._runner = runner
        self._final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._calls: queue.Queue[Sequence[Any] | None] = queue.Queue(_WAITING)
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._in_flight = 0
        self._counting = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._start_batches, "unified-start"), (self._send_responses, "unified-send"))
        ]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """The responses, or None: then they are sent when they are there."""
        if not self._in_flight and len(requests) == 1:
            return self._plain.execute(requests)
        with self._counting:
            self._in_flight += len(requests)
        self._calls.put(requests)
        return None

    def close(self) -> None:
        """Answer what is in flight, and stop."""
        self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._plain.close()

    def _start_batches(self) -> None:
        while (requests := self._calls.get()) is not None:
            readable: list[tuple[Any, Feeds]] = []
            for request in requests:
                try:
                    readable.append((request, self._plain.read(request)))
                except Exception as error:  # noqa: BLE001 - here one request's fault is kept from the others
                    self._send(request, self._plain.failure(error))
            for group in self._in_buckets(readable):
                try:
                    pending = self._runner.submit([feeds for _, feeds in group])
                except Exception as error:  # noqa: BLE001 - as above
                    logger.info('batch run one by one requests=%d reason="%s"', len(group), error)
                    for request, feeds in group:
                        self._send(request, self._plain.answer(request, feeds))
                    continue
                members = [(request, self._plain.rows(feeds)) for request, feeds in group]
                self._plain.count(sum(rows for _, rows in members))
                self._batches.put(_Batch(members, pending))
        self._batches.put(None)

    def _in_buckets(self, readable: Sequence[tuple[Any, Feeds]]) -> Iterator[list[tuple[Any, Feeds]]]:
        """Requests that fit into the largest bucket together, in their order."""
        largest = self._runner.buckets[-1] if self._runner.buckets else 1
        group: list[tuple[Any, Feeds]] = []
        size = 0
        for request, feeds in readable:
            rows = self._plain.rows(feeds)
            if group and size + rows > largest:
                yield group
                group, size = [], 0
            group.append((request, feeds))
            size += rows
        if group:
            yield group

    def _send_responses(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                arrays = batch.pending.wait()
            except Exception as error:  # noqa: BLE001 - as above
                for request, _ in batch.members:
                    self._send(request, self._plain.failure(error))
            else:
                begin = 0
                for request, rows in batch.members:
                    mine = arrays
                    if self._runner.buckets:
                        mine = {name: array[begin : begin + rows] for name, array in arrays.items()}
                    self._send(request, self._plain.response(request, mine))
                    begin += rows
            batch.pending.release()

    def _send(self, request: Any, response: Any) -> None:
        try:
            request.get_response_sender().send(response, flags=self._final)
        except Exception as error:  # noqa: BLE001 - the client is gone, or the server ends
            logger.info('response not sent reason="%s"', error)
        with self._counting:
            self._in_flight -= 1
