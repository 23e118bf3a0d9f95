"""Entries on their way to the remote tier: noted on disk, sent by a process of its own that outlives the load.

Pushing in a stub would cost requests their time, and a stub that only completes a config ends before it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

import unified_backend
from unified_backend.cache.flight import being_made
from unified_backend.cache.keys import Key
from unified_backend.cache.remote import Remote, RemoteError
from unified_backend.cache.remote.lease import RENEW_SECONDS, release, renew
from unified_backend.cache.store import Store

__all__ = ["Outbox", "Sent"]

logger = logging.getLogger(__name__)

_LOCK = "outbox"
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)  # after these the next load, or `cache push`, tries again


@dataclasses.dataclass(frozen=True)
class Sent:
    """What became of one entry: `pushed`, `there` already, `gone` from this host, or `failed` and why."""

    kind: str
    digest: str
    outcome: str
    reason: str = ""


class Outbox:
    """What this host has still to push; shared by its processes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.root / "outbox"
        self._locks = store.root / "locks"

    def add(self, key: Key, lease: str | None) -> None:
        """Note an entry that was just published, and the lease that its pusher takes over.

        Raises:
            OSError: it cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        value = {"kind": key.kind, "fields": dict(key.fields), "lease": lease}
        aside = self._folder / f".{key.digest}.{os.getpid()}"
        aside.write_text(json.dumps(value))
        aside.replace(self._folder / f"{key.digest}.json")

    def waiting(self) -> list[Path]:
        """Notes of entries not pushed yet, oldest first."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return self.waiting()  # one went between the listing and the look

    def send_in_background(self) -> None:
        """Start a pusher unless one is at work; it ends by itself when all is sent, or the store does not answer."""
        if not self.waiting() or being_made(self._locks, _LOCK):
            return
        command = [sys.executable, "-P", "-m", "unified_backend.cache.push", str(self._store.root)]
        package = str(Path(unified_backend.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        try:
            with (self._store.root / "push.log").open("ab") as log:
                # A session of its own, and no handle of ours: nobody waits for it, or is kept waiting by it.
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,
                )
        except OSError as error:
            logger.warning('entries not pushed reason="%s" next="triton-unified cache push"', error)

    def send(self, remote: Remote, patient: bool) -> Iterator[Sent]:
        """Push what waits, one entry after the other; nothing while another process does.

        Args:
            patient: try again a few times, over half a minute, before an entry is left for later.
        """
        while self.waiting():
            with self._alone() as alone:
                if not alone:
                    return
                failed = False
                with self._leases_renewed(remote):
                    for note in self.waiting():
                        sent = self._send_one(note, remote, patient)
                        failed = failed or sent.outcome == "failed"
                        yield sent
                if failed:
                    return
            # An entry noted while the lock was held had no pusher started for it: look once more without the lock.

    def _send_one(self, note: Path, remote: Remote, patient: bool) -> Sent:
        try:
            value = json.loads(note.read_bytes())
            key, lease = Key(str(value["kind"]), dict(value["fields"])), value["lease"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            note.unlink(missing_ok=True)
            return Sent("unknown", note.stem, "gone", f"unreadable note: {error}")
        sent = _pushed(remote, self._store.place(key), key, patient)
        if lease:
            release(remote.objects, str(lease))
        if sent.outcome != "failed":
            note.unlink(missing_ok=True)
        return sent

    @contextmanager
    def _leases_renewed(self, remote: Remote) -> Iterator[None]:
        """Renew, as long as the block runs, the lease of every entry that waits, those that come meanwhile too."""
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(RENEW_SECONDS):
                for note in self.waiting():
                    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                        if lease := json.loads(note.read_bytes())["lease"]:
                            renew(remote.objects, str(lease))

        thread = threading.Thread(target=keep, name="unified-leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        self._locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._locks / f"{_LOCK}.lock", fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def _pushed(remote: Remote, place: Path, key: Key, patient: bool) -> Sent:
    pauses = list(_RETRY_SECONDS) if patient else []
    while True:
        try:
            outcome = "pushed" if remote.push(place, key) else "there"
            logger.info("push kind=%s key=%s outcome=%s url=%s", key.kind, key.digest[:12], outcome, remote.url)
            return Sent(key.kind, key.digest, outcome)
        except OSError as error:
            return Sent(key.kind, key.digest, "gone", error.strerror or str(error))
        except RemoteError as error:
            if error.forbidden or not pauses:
                logger.warning('push failed kind=%s key=%s reason="%s"', key.kind, key.digest[:12], error)
                return Sent(key.kind, key.digest, "failed", str(error))
            time.sleep(pauses.pop(0))
