"""The cache: what is slow to make is made once, by one host of the fleet, and never taken for something else."""

from __future__ import annotations

import atexit
import dataclasses
import errno
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from unified_backend.cache.eviction import Evicted, default_limit, evict
from unified_backend.cache.flight import being_made
from unified_backend.cache.holds import Hold
from unified_backend.cache.keys import Key
from unified_backend.cache.making import Make, called, private_folder
from unified_backend.cache.manifest import Manifest, record_files
from unified_backend.cache.outbox import Outbox, Sent
from unified_backend.cache.remote import Lease, Remote
from unified_backend.cache.signing import Signer, read_signer
from unified_backend.cache.store import Store
from unified_backend.errors import CacheFullError, NotCachedError
from unified_backend.variables import CacheSettings

__all__ = ["Cache", "Entry"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cached artefact.

    Attributes:
        path: the folder that holds its files; never written to again.
        facts: what its maker handed back (JSON values).
        origin: `hit` on this disk, `pulled` from the remote tier, or `made` now.
    """

    path: Path
    facts: Mapping[str, Any]
    origin: Literal["hit", "pulled", "made"]


class Cache:
    """A store on one disk, shared by the threads, processes and servers of the host, with a remote tier behind it.

    Entries taken from it are held, safe from eviction, until `close` or the end of the process. Where the folder cannot
    be written, entries already there are served and new ones live in a private temporary folder until the process
    ends: slower, and never wrong.

    Args:
        root: the folder.
        limit: bytes that entries may take; None for `default_limit`.
        signer: signs what is made here; nothing that it does not verify is used.
        remote: the tier behind this one.
    """

    def __init__(
        self, root: Path, limit: int | None = None, signer: Signer | None = None, remote: Remote | None = None
    ) -> None:
        self.root = root
        self.store = Store(root, signer)
        self.remote = remote
        self.outbox = Outbox(self.store)
        self._limit = limit
        self._held: dict[str, Hold] = {}
        self._warned: set[str] = set()

    @classmethod
    def from_settings(cls, settings: CacheSettings, root: Path | None = None) -> Self:
        """The cache that the environment describes.

        Raises:
            CacheError: the key file or the remote tier's URL cannot be used.
        """
        root = root or settings.directory
        signer = read_signer(settings.key_file) if settings.key_file else None
        remote = Remote(settings.remote, root, signer) if settings.remote else None
        return cls(root, settings.max_bytes, signer, remote)

    @property
    def limit(self) -> int:
        """Bytes that entries may take together."""
        return default_limit(self.root) if self._limit is None else self._limit

    def get_or_make(self, key: Key, make: Make, model: str = "", required: bool = False) -> Entry:
        """The entry of this key, made if it is missing; one maker a key at a time on the host, and in the fleet.

        Args:
            key: what the entry depends on.
            make: called with an empty folder; writes the entry's files there and returns its facts. What it raises
                is raised and nothing is published.
            model: the model that asks, for people who read the manifest.
            required: never make it.

        Raises:
            NotCachedError: `required`, and it is neither here nor in the remote tier.
            CacheFullError: there is no room to make it anywhere.
        """
        if entry := self._found(key, repair=False):
            return entry
        try:
            with self.store.one_maker(key):
                entry = self._found(key) or self._pulled_or_made(key, make, model, required)
        except OSError as error:
            self._warn(error)
            entry = self._found(key) or self._unshared(key, make, model, required)
        if entry.origin != "hit" and entry.path.is_relative_to(self.store.place(key)):
            self._make_room()
        return entry

    def at_hand(self, key: Key) -> Entry | None:
        """The entry of this key if it is here, or in the remote tier; nobody who is making it is waited for."""
        if entry := self._found(key, repair=False):
            return entry
        if self.remote and not being_made(self.store.root / "locks", key.digest):
            with suppress(NotCachedError):
                return self.get_or_make(key, lambda _: {}, required=True)
        return None

    def adopt(self, key: Key, fetch: Callable[[Path], object]) -> bool:
        """Publish an entry that was made elsewhere; False if it is here already.

        Args:
            fetch: fills an empty folder, manifest and signature included, and checks all of it. What it raises is
                raised, and nothing is published.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        with self.store.one_maker(key):
            if found := self.store.read(key):
                _let_go(found[2])
                return False
            with self.store.aside(key) as aside:
                fetch(aside)
                _let_go(self.store.publish(aside, key)[1])
        self.evict()
        return True

    def evict(self, limit: int | None = None) -> Evicted:
        """Make room; see `evict`."""
        return evict(self.store, self.limit if limit is None else limit)

    def push_in_background(self) -> None:
        """Have sent what an earlier pusher left, unless the store is left alone now."""
        if self.remote and "write" not in self.remote.left_alone:
            self.outbox.send_in_background()

    def push_waiting(self, patient: bool = False) -> Iterator[Sent]:
        """Push what was made here and is not in the remote tier yet; see `Outbox.send`."""
        return self.outbox.send(self.remote, patient) if self.remote else iter(())

    def close(self) -> None:
        """Let go of every entry taken."""
        for hold in self._held.values():
            hold.release()
        self._held.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_room(self) -> None:
        try:
            self.evict()
        except OSError as error:
            logger.warning('cache not evicted folder=%s reason="%s"', self.root, error.strerror or error)

    def _warn(self, reason: OSError | str) -> None:
        """Say once why what is made here is for this process alone: a full disk meets every entry of a load."""
        why = reason if isinstance(reason, str) else reason.strerror or str(reason)
        if why not in self._warned:
            self._warned.add(why)
            logger.warning('cache not written folder=%s reason="%s" made=unshared', self.root, why)

    def _found(self, key: Key, repair: bool = True) -> Entry | None:
        found = self.store.read(key, repair)
        if found is None:
            return None
        path, manifest, hold = found
        self._hold(key, hold)
        self.store.usage.count(key.kind, "hit")
        return Entry(path, manifest.facts, "hit")

    def _pulled_or_made(self, key: Key, make: Make, model: str, required: bool) -> Entry:
        with self.store.aside(key) as aside:
            lease = None
            if self.remote:
                given = self.remote.pull(key, aside) if required else self.remote.pull_or_lease(key, aside)
                if isinstance(given, Manifest):
                    return self._published(key, aside, given, "pulled")
                lease = given
            if required:
                raise NotCachedError(model, key.kind, key.digest)
            try:
                entry = self._made(key, aside, make, model)
            except BaseException:
                if lease:
                    lease.release()
                raise
            self._send(key, lease)
            return entry

    def _made(self, key: Key, aside: Path, make: Make, model: str) -> Entry:
        if self.store.signer and not self.store.signer.can_sign:
            # It could be published only unsigned, to be refused by everybody, this host included.
            self._warn("the key of this host only verifies")
            return self._unshared(key, make, model)
        began = time.monotonic()
        try:
            facts = called(make, aside)
        except CacheFullError:
            self._warn(os.strerror(errno.ENOSPC))
            shutil.rmtree(aside, ignore_errors=True)  # room for others
            return self._unshared(key, make, model)
        made = {
            "model": model,
            "host": socket.gethostname(),
            "unix_time": int(time.time()),
            "seconds": round(time.monotonic() - began, 3),
        }
        return self._published(key, aside, Manifest(key, facts, record_files(aside), made), "made")

    def _published(self, key: Key, aside: Path, manifest: Manifest, origin: Literal["pulled", "made"]) -> Entry:
        self.store.usage.count(key.kind, origin)
        try:
            if origin == "made":
                self.store.seal(aside, manifest)
            place, hold = self.store.publish(aside, key)
        except OSError as error:
            # What was made is whole and in hand: it is used from where it is, out of the cleaner's reach.
            self._warn(error)
            kept = aside.with_name(f"{aside.name}.unshared")
            aside.rename(kept)
            atexit.register(shutil.rmtree, kept, ignore_errors=True)
            self._hold(key, Hold.take(kept))
            return Entry(kept, manifest.facts, origin)
        self._hold(key, hold)
        return Entry(place, manifest.facts, origin)

    def _unshared(self, key: Key, make: Make, model: str, required: bool = False) -> Entry:
        """The entry in a folder of this process alone."""
        folder = private_folder()
        try:
            if self.remote and (manifest := self._pulled_privately(key, folder)):
                return Entry(folder, manifest.facts, "pulled")
            if required:
                raise NotCachedError(model, key.kind, key.digest)
            return Entry(folder, called(make, folder), "made")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _pulled_privately(self, key: Key, folder: Path) -> Manifest | None:
        assert self.remote
        try:
            return self.remote.pull(key, folder, partial=folder.with_suffix(".partial"))
        except OSError as error:
            self._warn(error)
            shutil.rmtree(folder)
            folder.mkdir()
            return None

    def _send(self, key: Key, lease: Lease | None) -> None:
        """Have what was published pushed, in its own time; the pusher takes the lease over."""
        if not self.remote:
            return
        if self.store.place(key).exists():
            try:
                self.outbox.add(key, lease.hand_over() if lease else None)
                self.outbox.send_in_background()
                return
            except OSError as error:
                logger.warning('entry not pushed kind=%s reason="%s"', key.kind, error.strerror or error)
        if lease:
            lease.release()

    def _hold(self, key: Key, hold: Hold | None) -> None:
        if hold is None:
            return
        if earlier := self._held.pop(key.digest, None):
            earlier.release()
        self._held[key.digest] = hold


def _let_go(hold: Hold | None) -> None:
    if hold:
        hold.release()
