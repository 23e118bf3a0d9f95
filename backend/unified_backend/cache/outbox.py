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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unified_backend import hosts
from unified_backend.cache.files import write_whole
from unified_backend.cache.flight import being_made, locks_missing
from unified_backend.cache.holds import Hold
from unified_backend.cache.keys import Key
from unified_backend.cache.manifest import MANIFEST
from unified_backend.cache.remote import Claim, Remote, RemoteError
from unified_backend.cache.remote.lease import RENEW_SECONDS
from unified_backend.cache.store import Store

__all__ = ["Outbox", "Sent"]

logger = logging.getLogger(__name__)

_LOCK = "outbox"
_RETRY_SECONDS = (1.0, 2.0, 4.0)  # after these the next load, or `cache push`, tries again


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
        # A renewal reads the lease, then writes it: between the two nobody gives it back, or it would be there again.
        self._renewing = threading.Lock()

    def add(self, key: Key, claim: Claim | None) -> None:
        """Note an entry that was just published, and the lease that its pusher takes over.

        Raises:
            OSError: it cannot be written.
        """
        lease = dataclasses.asdict(claim) if claim else None
        value = {"kind": key.kind, "fields": dict(key.fields), "lease": lease}
        write_whole(self._folder / f"{key.digest}.json", json.dumps(value))

    def waiting(self) -> list[Path]:
        """Notes of entries not pushed yet, oldest first."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return self.waiting()  # one went between the listing and the look

    def send_in_background(self) -> None:
        """Start a pusher unless one is at work; it ends by itself when all is sent, or the store does not answer."""
        if not self.waiting() or being_made(self._locks, _LOCK):
            return
        # Found where this process finds it; without the working directory, which is a stranger's.
        path = os.pathsep.join(folder for folder in sys.path if folder)
        try:
            command = [hosts.interpreter(), "-P", "-m", "unified_backend.cache.push", str(self._store.root)]
            with (self._store.root / "push.log").open("ab") as log:
                # A session of its own, and no handle of ours: nobody waits for it, or is kept waiting by it.
                pusher = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,
                )
            # A server lives for months: its stubs keep no dead children.
            threading.Thread(target=pusher.wait, name="unified-pusher", daemon=True).start()
        except OSError as error:
            logger.warning('entries not pushed reason="%s" next="triton-unified cache push"', error)

    def send(self, remote: Remote, patient: bool) -> Iterator[Sent]:
        """Push what waits, one entry after the other; nothing while another process does.

        Where locks do not work, two processes may push one entry: the store takes it once.

        Args:
            patient: try again a few times, some seconds apart, before an entry is left for later.
        """
        while self.waiting():
            with self._alone() as alone:
                if not alone:
                    return
                failed = False
                with self._leases_renewed(remote):
                    for note in self.waiting():
                        sent = self._send_one(note, remote, patient and not failed)
                        failed = failed or sent.outcome == "failed"
                        yield sent
                if failed:
                    return
            # An entry noted while the lock was held had no pusher started for it: look once more without the lock.

    def _send_one(self, note: Path, remote: Remote, patient: bool) -> Sent:
        try:
            key, claim = _read(note)
        except (OSError, ValueError, KeyError, TypeError) as error:
            note.unlink(missing_ok=True)
            return Sent("unknown", note.stem, "gone", f"unreadable note: {error}")
        sent = _pushed(remote, self._store.place(key), key, patient)
        with self._renewing:
            if sent.outcome != "failed":
                note.unlink(missing_ok=True)
            elif claim:
                self.add(key, None)
            if claim:
                claim.release(remote.objects)
        return sent

    @contextmanager
    def _leases_renewed(self, remote: Remote) -> Iterator[None]:
        """Renew, as long as the block runs, the lease of every entry that waits, those that come meanwhile too."""
        stop = threading.Event()

        def keep() -> None:
            while True:  # at once: starting this process may have taken its time
                for note in self.waiting():
                    with self._renewing, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                        if claim := _read(note)[1]:
                            claim.renew(remote.objects)
                if stop.wait(RENEW_SECONDS):
                    return

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
            # Not at once: another process may hold it for a moment, only to see whether a pusher is at work.
            lock.acquire(timeout=1.0)
        except Timeout:
            yield False
            return
        except OSError as error:
            if not locks_missing(self._locks, error):
                raise
        try:
            yield True
        finally:
            lock.release()


def _read(note: Path) -> tuple[Key, Claim | None]:
    value: Mapping[str, Any] = json.loads(note.read_bytes())
    lease = value["lease"]
    claim = Claim(str(lease["path"]), str(lease["owner"])) if lease else None
    return Key(str(value["kind"]), dict(value["fields"])), claim


def _pushed(remote: Remote, place: Path, key: Key, patient: bool) -> Sent:
    """Push an entry, which nobody evicts meanwhile."""
    with contextlib.ExitStack() as held:
        try:
            if hold := Hold.take(place / MANIFEST):
                held.callback(hold.release)
        except OSError as error:
            return Sent(key.kind, key.digest, "gone", error.strerror or str(error))
        return _push_held(remote, place, key, patient)


def _push_held(remote: Remote, place: Path, key: Key, patient: bool) -> Sent:
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
                remote.failed("write", error)
                return Sent(key.kind, key.digest, "failed", str(error))
            time.sleep(pauses.pop(0))
