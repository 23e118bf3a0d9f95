"""A fleet builds once: a lease an entry, held by the host that builds it, renewed while it lives.

A lease is an object `leases/DIGEST/NNNNNN`; the highest number counts. Taking it is creating the next number, which of
all hosts one can do. Nobody's clock is compared with another's: a host that has seen the same content for longer than
the lease's time, by its own clock, takes the holder for dead.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import Any

from unified_backend.cache.remote.objects import Objects, RemoteError

__all__ = ["LEASE_SECONDS", "RENEW_SECONDS", "Claim", "Lease", "Watch", "acquire"]

logger = logging.getLogger(__name__)

LEASE_SECONDS = 20.0
RENEW_SECONDS = 4.0  # several may fail or be late before the lease is lost


@dataclasses.dataclass(frozen=True)
class Claim:
    """What makes a lease ours: the object, and the name in it that nobody else has."""

    path: str
    owner: str

    def renew(self, objects: Objects) -> bool:
        """Show the fleet that the holder is alive; False if the lease is another's by now.

        A store that does not answer is for the log: there is time for another try.
        """
        try:
            if not self._ours(objects):
                logger.info('lease lost lease=%s next="two hosts may build one entry"', self.path[:24])
                return False
            objects.put(self.path, self.content())
        except RemoteError as error:
            logger.info('lease not renewed lease=%s reason="%s"', self.path[:24], error)
        return True

    def release(self, objects: Objects) -> None:
        """Give the lease back, so that whoever waits need not wait it out; one that cannot be given back runs out."""
        try:
            if self._ours(objects):
                folder = self.path.rpartition("/")[0]
                # With those of the dead that it replaced, which would count once this one is gone.
                for path in [name for name in objects.names(folder) if name <= self.path]:
                    objects.delete(path)
        except RemoteError as error:
            logger.info('lease not released lease=%s reason="%s" next="it runs out"', self.path[:24], error)

    def content(self) -> bytes:
        """Who holds the lease and until when, for people; the mark makes each renewal different from the last."""
        value = {
            "owner": self.owner,
            "holder": f"pid {os.getpid()} on {socket.gethostname()}",
            "expires_unix_time": round(time.time() + LEASE_SECONDS, 1),
            "mark": uuid.uuid4().hex,
        }
        return json.dumps(value).encode()

    def _ours(self, objects: Objects) -> bool:
        content = objects.get(self.path)
        return content is not None and _field(content, "owner") == self.owner


class Lease:
    """The right to build an entry for the whole fleet, renewed by a thread until `release` or `hand_over`."""

    def __init__(self, objects: Objects, claim: Claim) -> None:
        self._objects = objects
        self._claim = claim
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_for_ever, name="unified-lease", daemon=True)
        self._thread.start()

    def hand_over(self) -> Claim:
        """Stop renewing, for a process that goes on within the lease's time; returns what that one renews."""
        self._stop.set()
        self._thread.join()
        return self._claim

    def release(self) -> None:
        """Give the right back."""
        self.hand_over().release(self._objects)

    def _renew_for_ever(self) -> None:
        while not self._stop.wait(RENEW_SECONDS) and self._claim.renew(self._objects):
            pass


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
        names = [name for name in self._objects.names(self._folder) if name.rpartition("/")[2].isdecimal()]
        if not names:
            return f"{self._folder}/000001"
        content = self._objects.get(names[-1])
        if content is None:
            return None  # released this moment; the next look tells
        self.holder = _field(content, "holder")
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
    claim = Claim(path, uuid.uuid4().hex)
    content = claim.content()
    # An answer that was lost on the way is asked for again, and then the object is there already: ours.
    if objects.create(path, content) or objects.get(path) == content:
        return Lease(objects, claim)
    return None


def _field(content: bytes, name: str) -> str:
    try:
        value: Any = json.loads(content)[name]
    except (ValueError, KeyError, TypeError):
        return "unknown"
    return str(value)[:100]
