"""Entries in an object store, shared by a fleet: pulled before anything is built, pushed after it.

Layout below the URL: `entries/KIND/DIGEST.json` holds a manifest and its signature; `blobs/SHA256` the bytes of a file,
under their own digest. An entry is created by one conditional put and names its blobs by content, so two hosts that
push one key at once cannot tear it: the first wins, whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.cache.keys import Key
from unified_backend.cache.manifest import MANIFEST, SIGNATURE, DamagedError, Manifest, artefacts, path_in
from unified_backend.cache.remote.breaker import Breaker
from unified_backend.cache.remote.lease import Lease, Watch, acquire
from unified_backend.cache.remote.objects import Objects, RemoteError
from unified_backend.cache.remote.transfer import fetch
from unified_backend.cache.signing import Signer
from unified_backend.errors import CacheError

__all__ = ["Remote"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_REPORT_SECONDS = 10.0


class Remote:
    """The remote tier of one host.

    Args:
        url: see `Objects`.
        folder: on this host, for what outlives a process: parts of large objects, and when to try again.
        signer: where set, only entries that it verifies are taken.

    Raises:
        CacheError: the URL cannot be used, or is a folder that overlaps the local cache.

    Attributes:
        failures: operations of this process that the store failed.
    """

    def __init__(self, url: str, folder: Path, signer: Signer | None = None) -> None:
        self.objects = Objects(url)
        if (there := self.objects.folder) and _overlap(there.resolve(), folder.resolve()):
            raise CacheError(
                f"the remote cache {there} cannot be used",
                f"it shares a folder with the local cache {folder}",
                "Set TRITON_UNIFIED_REMOTE_CACHE to a folder beside it, on a disk that the fleet shares",
            )
        self.failures = 0
        self._partial = folder / "partial"
        self._signer = signer
        self._breaker = Breaker(folder / "remote", self.objects.url)
        self._refused: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where it is, without credentials."""
        return self.objects.url

    @property
    def left_alone(self) -> dict[str, str]:
        """Operation (`read`, `write`) -> why this host does not ask the store for it now."""
        return self._breaker.reasons()

    def pull(self, key: Key, folder: Path, partial: Path | None = None) -> Manifest | None:
        """Fetch this key's entry into an empty folder, manifest and signature included.

        A store that is down, slow or forbidden, and an entry that is damaged or not signed as it should be, are
        warnings: the caller builds.

        Args:
            partial: where parts of large objects are kept, in place of the host's folder for them.

        Returns:
            None, and an empty folder, if the entry is not to be had.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        if not self._breaker.closed("read"):
            return None
        try:
            found = self._pull(key, folder, partial or self._partial)
        except RemoteError as error:
            self.failed("read", error)
            found = None
        else:
            self._breaker.succeeded("read")
        if found is None:
            _empty(folder)
        return found

    def fetch(self, key: Key, folder: Path) -> Manifest | None:
        """`pull` for a person who waits for the answer: asks a store that is left alone too, and says how it fails.

        Raises:
            RemoteError: the store does not answer.
            OSError: the disk is full or cannot be written.
        """
        found = self._pull(key, folder, self._partial)
        self._breaker.succeeded("read")
        return found

    def pull_or_lease(self, key: Key, folder: Path) -> Manifest | Lease | None:
        """Fetch the entry, or get the right to build it; waits while another host has it, saying so every ten seconds.

        Returns:
            The manifest of the entry now in `folder`; or a lease, to be released or handed over; or None, when the
            store is no help and this host builds for itself.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        watch = Watch(self.objects, key.digest)
        began = reported = time.monotonic()
        while True:
            if manifest := self.pull(key, folder):
                return manifest
            if not self._breaker.closed("read") or not self._breaker.closed("write"):
                return None
            try:
                free = watch.look()
                lease = acquire(self.objects, free) if free else None
            except RemoteError as error:
                self.failed("write", error)
                return None
            if lease:
                self._breaker.succeeded("write")
                return self._pulled_under(lease, key, folder) or lease
            if time.monotonic() - reported >= _REPORT_SECONDS:
                reported = time.monotonic()
                waited = reported - began
                logger.info(
                    'waiting kind=%s key=%s maker="%s" seconds=%.0f', key.kind, key.digest[:12], watch.holder, waited
                )
            time.sleep(_LOOK_SECONDS)

    def _pulled_under(self, lease: Lease, key: Key, folder: Path) -> Manifest | None:
        """The entry, if the last holder pushed it after this host looked for it; then the lease is given back."""
        try:
            found = self.pull(key, folder)
        except BaseException:
            lease.release()
            raise
        if found:
            lease.release()
        return found

    def push(self, place: Path, key: Key) -> bool:
        """Send an entry of this host; False if the store has it already.

        Raises:
            RemoteError: the store did not take it.
            OSError: the entry is gone from this host.
        """
        data = (place / MANIFEST).read_bytes()
        manifest = Manifest.from_bytes(data, key.digest)
        path = _path(key)
        there = self.objects.get(path)
        if there is not None and self._trusted(there, key):
            return False
        for name, file in artefacts(place).items():
            blob = f"blobs/{manifest.files[name].sha256}"
            if self.objects.size(blob) != manifest.files[name].size:
                self.objects.upload(blob, file)
        signature = place / SIGNATURE
        envelope = _envelope(data, signature.read_bytes() if signature.exists() else None)
        if there is None:
            created = self.objects.create(path, envelope)
        else:
            self.objects.put(path, envelope)  # over one that no host with this key would take
            created = True
        self._breaker.succeeded("write")
        return created

    def failed(self, operation: str, error: RemoteError) -> None:
        """Have this host leave the store alone for a while, for `read` or `write`."""
        self.failures += 1
        self._breaker.failed(operation, str(error))

    def keys(self) -> list[tuple[str, str]]:
        """Kind and digest of every entry in the store.

        Raises:
            RemoteError: the store does not answer.
        """
        parts = [name.removesuffix(".json").split("/") for name in self.objects.names("entries")]
        return [(part[-2], part[-1]) for part in parts if len(part) == 3]

    def manifest(self, kind: str, digest: str) -> Manifest | None:
        """The manifest of one entry, or None if there is none that can be trusted.

        Raises:
            RemoteError: the store does not answer.
        """
        envelope = self.objects.get(f"entries/{kind}/{digest}.json")
        try:
            return None if envelope is None else self._opened(envelope, digest)[0]
        except DamagedError as error:
            _warn_untrusted(digest, error)
            return None

    def _pull(self, key: Key, folder: Path, partial: Path) -> Manifest | None:
        envelope = self.objects.get(_path(key))
        if envelope is None:
            return None
        seen = hashlib.sha256(envelope).hexdigest()
        if self._refused.get(key.digest) == seen:
            return None  # the same as at the last look, while another host builds a better one
        try:
            manifest, data, signature = self._opened(envelope, key.digest)
            self._fetch_files(manifest, folder, partial)
        except DamagedError as error:
            self._refused[key.digest] = seen
            _warn_untrusted(key.digest, error)
            return None
        (folder / MANIFEST).write_bytes(data)
        if signature is not None:
            (folder / SIGNATURE).write_bytes(signature)
        return manifest

    def _fetch_files(self, manifest: Manifest, folder: Path, partial: Path) -> None:
        for name, record in manifest.files.items():
            target = path_in(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            blob = f"blobs/{record.sha256}"
            if self.objects.size(blob) != record.size:
                raise DamagedError(f"the object {blob[:18]} of {name} is missing or has the wrong size")
            try:
                fetch(self.objects, blob, record, target, partial)
            except DamagedError:
                # Or the next push would take it for there. A host that may not delete leaves it to one that may.
                with contextlib.suppress(RemoteError):
                    self.objects.delete(blob)
                raise

    def _opened(self, envelope: bytes, digest: str) -> tuple[Manifest, bytes, bytes | None]:
        """Manifest, its bytes, and the signature file's bytes.

        Raises:
            DamagedError: it cannot be read, is of another key, or not signed as this host wants it.
        """
        try:
            value: Mapping[str, Any] = json.loads(envelope)
            data = str(value["manifest"]).encode()
            signature = None if value["signature"] is None else str(value["signature"]).encode()
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"unreadable: {error}") from None
        if self._signer:
            self._signer.verify(data, signature)
        return Manifest.from_bytes(data, digest), data, signature

    def _trusted(self, envelope: bytes, key: Key) -> bool:
        try:
            manifest, _, _ = self._opened(envelope, key.digest)
        except DamagedError:
            return False
        return all(self.objects.size(f"blobs/{record.sha256}") == record.size for record in manifest.files.values())


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _empty(folder: Path) -> None:
    """Remove what is in a folder; the folder itself is held by its maker."""
    for child in folder.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()


def _path(key: Key) -> str:
    return f"entries/{key.kind}/{key.digest}.json"


def _envelope(manifest: bytes, signature: bytes | None) -> bytes:
    value = {"manifest": manifest.decode(), "signature": None if signature is None else signature.decode()}
    return json.dumps(value).encode()


def _warn_untrusted(digest: str, error: DamagedError) -> None:
    logger.warning('remote entry NOT USED entry=%s reason="%s" next="building here"', digest[:12], error)
