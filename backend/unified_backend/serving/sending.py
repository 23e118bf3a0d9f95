"""Responses that are sent when they are there, after `execute` has returned."""

from __future__ import annotations

import logging
import threading
from typing import Any

__all__ = ["Sender"]

logger = logging.getLogger(__name__)


class Sender:
    """Sends responses, and knows how many requests still wait for theirs.

    Args:
        pb_utils: Triton's module.
    """

    def __init__(self, pb_utils: Any) -> None:
        self._final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._waiting = 0
        self._counting = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether no request waits."""
        return not self._waiting

    def expect(self, requests: int) -> None:
        """That many requests will be sent their responses."""
        with self._counting:
            self._waiting += requests

    def send(self, request: Any, response: Any) -> None:
        """The one response to a request."""
        try:
            request.get_response_sender().send(response, flags=self._final)
        except Exception as error:  # noqa: BLE001 - the client is gone, or the server ends
            logger.info('response not sent reason="%s"', error)
        with self._counting:
            self._waiting -= 1
