"""Requests on a GPU: batches of whatever Triton hands over, several in flight, tensors of the GPU taken and given."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unified_backend.engines.device import DeviceRunner, Pending
from unified_backend.serving.executor import Executor, Feeds
from unified_backend.serving.sending import Sender
from unified_backend.serving.transfer import device_tensor
from unified_backend.tensors import Array

__all__ = ["PipelinedExecutor"]

_WAITING = 2  # calls of `execute` that wait for the thread which starts batches; more would only hide a full GPU


@dataclasses.dataclass(frozen=True)
class _Member:
    """A request that was read.

    Attributes:
        position: in its call of `execute`.
        rows: its batch size.
    """

    position: int
    request: Any
    feeds: Feeds
    rows: int


class PipelinedExecutor:
    """Answers the requests of a model instance on a GPU.

    With several contexts, one thread starts batches (staging, copies, launch), another waits for them and sends the
    responses, and Triton hands over the next requests meanwhile. A lone request on an idle GPU is answered at once, for
    a response sender costs another round trip to the server.

    Args:
        plain: reads single requests, and makes responses.
        runner: the engine.
        at_once: answer each call before the next, as tensors of the GPU demand, which are the server's again after it.
        gpu_outputs: give outputs in memory of the GPU.
    """

    def __init__(
        self, pb_utils: Any, plain: Executor, runner: DeviceRunner, at_once: bool = False, gpu_outputs: bool = False
    ) -> None:
        self._pb_utils = pb_utils
        self._plain = plain
        self._runner = runner
        self._at_once = at_once or gpu_outputs or runner.contexts == 1
        self._gpu_outputs = gpu_outputs
        self._calls: queue.Queue[Sequence[Any] | None] = queue.Queue(_WAITING)
        self._batches: queue.SimpleQueue[tuple[Sequence[_Member], Pending] | None] = queue.SimpleQueue()
        self._sender = Sender(pb_utils)
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._start_batches, "unified-start"), (self._send_responses, "unified-send"))
        ]
        if not self._at_once:
            for thread in self._threads:
                thread.start()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """The responses, or None: then they are sent when they are there."""
        if self._at_once or (self._sender.idle and len(requests) == 1):
            return self._answer_now(requests)
        self._sender.expect(len(requests))
        self._calls.put(requests)
        return None

    def close(self) -> None:
        """Answer what is in flight, and stop."""
        if not self._at_once:
            self._calls.put(None)
            for thread in self._threads:
                thread.join()
        self._plain.close()

    def _answer_now(self, requests: Sequence[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        members = []
        for position, request in enumerate(requests):
            try:
                members.append(self._member(position, request))
            except Exception as error:  # noqa: BLE001 - here one request's fault is kept from the others
                responses[position] = self._plain.failure(error)
        for group in self._in_buckets(members):
            try:
                pending = self._started(group)
            except Exception as error:  # noqa: BLE001 - as above
                for member in group:
                    responses[member.position] = self._one_by_one(group, member, error)
                continue
            try:
                for member, response in zip(group, self._responses(group, pending), strict=True):
                    responses[member.position] = response
            finally:
                pending.release()
        return responses

    def _member(self, position: int, request: Any) -> _Member:
        feeds = self._plain.read(request)
        return _Member(position, request, feeds, self._plain.rows(feeds))

    def _in_buckets(self, members: Sequence[_Member]) -> Iterator[list[_Member]]:
        """Requests that fit into the largest bucket together, in their order."""
        largest = self._runner.buckets[-1] if self._runner.buckets else 1
        group: list[_Member] = []
        size = 0
        for member in members:
            if group and size + member.rows > largest:
                yield group
                group, size = [], 0
            group.append(member)
            size += member.rows
        if group:
            yield group

    def _started(self, group: Sequence[_Member]) -> Pending:
        pending = self._runner.submit([member.feeds for member in group])
        self._plain.count(sum(member.rows for member in group))
        return pending

    def _one_by_one(self, group: Sequence[_Member], member: _Member, error: Exception) -> Any:
        """The response to a request whose batch failed: alone if it was not alone, so that only the culprit fails."""
        return self._plain.failure(error) if len(group) == 1 else self._plain.answer(member.request, member.feeds)

    def _responses(self, group: Sequence[_Member], pending: Pending, copied: bool = True) -> Iterator[Any]:
        """A response for each request of a batch, when it is done.

        Args:
            copied: of arrays whose memory is not used by another batch before they are sent.
        """
        try:
            arrays = pending.wait()
        except Exception as error:  # noqa: BLE001 - as above
            yield from (self._plain.failure(error) for _ in group)
            return
        if self._gpu_outputs:
            yield from self._on_gpu(group, pending)
            return
        begin = 0
        for member in group:
            yield self._plain.response(member.request, self._own(arrays, begin, member.rows, copied))
            begin += member.rows

    def _own(self, arrays: Mapping[str, Array], begin: int, rows: int, copied: bool) -> dict[str, Array]:
        mine = {name: array[begin : begin + rows] if self._runner.buckets else array for name, array in arrays.items()}
        return {name: array.copy() for name, array in mine.items()} if copied else mine

    def _on_gpu(self, group: Sequence[_Member], pending: Pending) -> Iterator[Any]:
        begin = 0
        for member in group:
            try:
                tensors = [
                    device_tensor(self._pb_utils, name, pending.on_device(name, begin, member.rows))
                    for name in self._plain.wanted(member.request)
                ]
                yield self._pb_utils.InferenceResponse(tensors)
            except Exception as error:  # noqa: BLE001 - as above
                yield self._plain.failure(error)
            begin += member.rows

    def _start_batches(self) -> None:
        while (requests := self._calls.get()) is not None:
            members = []
            for position, request in enumerate(requests):
                try:
                    members.append(self._member(position, request))
                except Exception as error:  # noqa: BLE001 - as above
                    self._sender.send(request, self._plain.failure(error))
            for group in self._in_buckets(members):
                try:
                    self._batches.put((group, self._started(group)))
                except Exception as error:  # noqa: BLE001 - as above
                    for member in group:
                        self._sender.send(member.request, self._one_by_one(group, member, error))
        self._batches.put(None)

    def _send_responses(self) -> None:
        while (batch := self._batches.get()) is not None:
            group, pending = batch
            for member, response in zip(group, self._responses(group, pending, copied=False), strict=True):
                self._sender.send(member.request, response)
            pending.release()
