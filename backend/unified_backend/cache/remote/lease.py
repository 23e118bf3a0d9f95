"""A fleet builds once: a lease an entry, held by the host that builds it, renewed while it lives.

A lease is an object `leases/DIGEST/NNNNNN`; the highest number counts. Taking it is creating the next number, which of
all hosts one can do. Nobody's clock is compared with another's: a host that has seen the same content for longer than
the lease's time, by its own clock, takes the holder for dead.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from unified_backend.cache.remote.objects import Objects, RemoteError

__all__ = ["LEASE_SECONDS", "RENEW_SECONDS", "Lease", "Watch", "acquire", "release", "renew"]

logger = logging.getLogger(__name__)

LEASE_SECONDS = 20.0
RENEW_SECONDS = 4.0  # several may fail or be late before the lease is lost


class Lease:
    """The right to build an entry for the whole fleet, renewed by a thread until `release` or `hand_over`.

    Attributes:
        path: the object that says so.
    """

    def __init__(self, objects: Objects, path: str) -> None:
        self.path = path
        self._objects = objects
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_for_ever, name="unified-lease", daemon=True)

        self._thread.start()

    def hand_over(self) -> str:
        """Stop renewing, for a process that goes on within the lease's time; returns what that one renews."""
        self._stop.set()
        self._thread.join()
        return self.path

    def release(self) -> None:
        """Give the right back, so that whoever waits need not wait out the lease."""
        release(self._objects, self.hand_over())

    def _renew_for_ever(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            renew(self._objects, self.path)


class Watch:
    """What a waiting host has seen of the leases of one entry.

    Attributes:
        holder: who holds it, in words.
    """

    def __init__(self, objects: Objects, digest: str) -> None:
        self._objects = objects
        self._folder = f"leases/{digest}"
        self._seen: tuple[str, bytes] | None = None
        self._since = 0.0
        self.holder = "nobody"

    def look(self) -> str | None:
        """The path of the lease to take now, or None while a live host holds one.

        Raises:
            RemoteError: the store does not answer.
        """
        names = self._objects.names(self._folder)
        if not names:
            return f"{self._folder}/000001"
        content = self._objects.get(names[-1])
        if content is None:
            return None  # released this moment; the next look tells
        self.holder = _holder(content)
        if self._seen != (names[-1], content):
            self._seen, self._since = (names[-1], content), time.monotonic()
        if time.monotonic() - self._since < LEASE_SECONDS:
            return None
        logger.warning('lease ran out maker="%s" next="building here"', self.holder)
        return f"{self._folder}/{int(names[-1].rpartition('/')[2]) + 1:06d}"


def acquire(objects: Objects, path: str) -> Lease | None:
    """The lease at `path`, or None if another host was quicker.

    Raises:
        RemoteError: the store does not answer, or does not let this host write.
    """
    if not objects.create(path, _content()):
        return None
    return Lease(objects, path)


def renew(objects: Objects, path: str) -> None:
    """Show the fleet that the holder of a lease is alive; a store that does not answer is for the log."""
    try:
        objects.put(path, _content())
    except RemoteError as error:
        logger.info('lease not renewed lease=%s reason="%s"', path[:24], error)


def release(objects: Objects, path: str) -> None:
    """Give a lease back; one that cannot be given back runs out."""
    try:
        objects.delete(path)
    except RemoteError as error:
        logger.info('lease not released lease=%s reason="%s" next="it runs out"', path[:24], error)


def _content() -> bytes:
    """Who holds the lease and until when, for people; the mark makes each renewal different from the last."""
    value: Mapping[str, Any] = {
        "holder": f"pid {os.getpid()} on {socket.gethostname()}",
        "expires_unix_time": round(time.time() + LEASE_SECONDS, 1),
        "mark": uuid.uuid4().hex,
    }
    return json.dumps(value).encode()


def _holder(content: bytes) -> str:
    try:
        return str(json.loads(content)["holder"])[:100]
    except (ValueError, KeyError, TypeError):
        return "unknown"
