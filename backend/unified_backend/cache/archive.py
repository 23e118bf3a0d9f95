"""Entries in one tar file, for hosts that share no store: written whole or not at all, read with no trust in it.

Layout: for each entry `entries/KIND/DIGEST/manifest.json`, then `manifest.sig` if there is one, then the files in the
manifest's order; as the last member an index, without which the archive was cut off.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from unified_backend.cache.archive_file import Metered, broken_is_a_read_error, reading, writing
from unified_backend.cache.cache import Cache
from unified_backend.cache.holds import Hold
from unified_backend.cache.manifest import MANIFEST, SIGNATURE, DamagedError, FileRecord, Manifest, path_in
from unified_backend.cache.outbox import Sent
from unified_backend.cache.store import Store, Stored
from unified_backend.errors import Refused

__all__ = ["pack", "unpack"]

_INDEX = "triton-unified-cache.json"
_MEMBER = re.compile(r"entries/([A-Za-z0-9_-]+)/([0-9a-f]{64})/(.+)", re.DOTALL)
_CHUNK = 1 << 20
# Bounds on what is read into memory, and on what is skipped; honest archives stay far below.
_MANIFEST_BYTES, _SIGNATURE_BYTES = 16 << 20, 64 << 10
_SKIPPED_MEMBERS = 10_000
# What a file system answers to a name that it does not take; anything else is the disk's own trouble.
_BAD_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


def pack(store: Store, entries: Iterable[Stored], file: Path) -> Iterator[Sent]:
    """Write entries into `file`, `.tar` or `.tar.zst`, which appears when all are in it.

    Returns:
        `exported`, or `failed` and how the entry is damaged, or `gone` meanwhile.

    Raises:
        Refused: the file's name ends otherwise.
        CacheError: the package zstandard is missing.
        OSError: the file cannot be written.
    """
    packed = []
    with writing(file) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for entry in entries:
            sent = _pack_one(store, entry, tar)
            if sent.outcome == "exported":
                packed.append(f"{sent.kind}/{sent.digest}")
            yield sent
        _add(tar, _INDEX, json.dumps({"entries": packed}).encode())


def unpack(cache: Cache, file: Path) -> Iterator[Sent]:
    """Publish the entries of an archive, each checked before it is: digests, and the signature where a key is set.

    Returns:
        `imported`, `there` already, or `refused` and why; of what is no entry, without kind and digest.

    Raises:
        Refused: there is no such file, or it is no archive at all.
        CacheError: the package zstandard is missing.
        OSError: the cache's disk is full or cannot be written.
    """
    with reading(file) as stream:
        try:
            with broken_is_a_read_error():
                tar = tarfile.open(fileobj=stream, mode="r|")  # noqa: SIM115 - it owns nothing to close
        except tarfile.TarError as error:
            raise Refused(
                f"{file} is not an archive of entries", str(error), "Make one with `triton-unified cache export`"
            ) from None
        try:
            yield from _Unpacking(cache, tar, stream).entries()
        except tarfile.TarError as error:
            yield Sent("", "", "refused", f"the rest of the archive: {error}")


def _pack_one(store: Store, entry: Stored, tar: tarfile.TarFile) -> Sent:
    kind, digest = entry.manifest.key.kind, entry.digest
    prefix = f"entries/{kind}/{digest}"
    try:
        hold = Hold.take(entry.path / MANIFEST)
    except FileNotFoundError:
        return Sent(kind, digest, "gone", "removed meanwhile")
    try:
        manifest = store.check(entry.path, store.memo.digest)
        _add(tar, f"{prefix}/{MANIFEST}", (entry.path / MANIFEST).read_bytes())
        if (entry.path / SIGNATURE).exists():
            _add(tar, f"{prefix}/{SIGNATURE}", (entry.path / SIGNATURE).read_bytes())
        for name, record in manifest.files.items():
            with path_in(entry.path, name).open("rb") as source:
                tar.addfile(_member(f"{prefix}/{name}", record.size), source)
    except DamagedError as error:
        return Sent(kind, digest, "failed", f"damaged: {error}")
    finally:
        if hold:
            hold.release()
    return Sent(kind, digest, "exported")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_member(name, len(data)), io.BytesIO(data))


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Without times and owners: the same entries give the same archive."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


class _Unpacking:
    """One pass through an archive, member by member, in the order that `pack` writes."""

    def __init__(self, cache: Cache, tar: tarfile.TarFile, stream: Metered) -> None:
        self._cache = cache
        self._tar = tar
        self._stream = stream
        self._skipped = 0
        self._unread = 0
        self._next: tarfile.TarInfo | None = None
        self._advance()

    def entries(self) -> Iterator[Sent]:
        """What becomes of each entry."""
        while (member := self._next) is not None and member.name != _INDEX:
            if not (found := _MEMBER.fullmatch(member.name)):
                self._skip()
                yield Sent("", "", "refused", f"the member {member.name[:80]!r}: it belongs to no entry")
                continue
            kind, digest = found[1], found[2]
            prefix = f"entries/{kind}/{digest}/"
            try:
                outcome, reason = self._entry(kind, digest, prefix), ""
            except DamagedError as error:
                outcome, reason = "refused", str(error)
            while self._next is not None and self._next.name.startswith(prefix):
                self._skip()
            yield Sent(kind, digest, outcome, reason)
        self._end()

    def _entry(self, kind: str, digest: str, prefix: str) -> str:
        data = self._small(prefix + MANIFEST, _MANIFEST_BYTES)
        manifest = Manifest.from_bytes(data, digest)
        if manifest.key.kind != kind:
            raise DamagedError(f"its manifest is of the kind {manifest.key.kind}")
        signed = self._next is not None and self._next.name == prefix + SIGNATURE
        signature = self._small(prefix + SIGNATURE, _SIGNATURE_BYTES) if signed else None
        if self._cache.store.signer:
            self._cache.store.signer.verify(data, signature)
        if manifest.size > self._cache.limit:
            raise DamagedError(f"it takes {manifest.size} bytes, and the cache no more than {self._cache.limit}")

        def fill(folder: Path) -> None:
            (folder / MANIFEST).write_bytes(data)
            if signature is not None:
                (folder / SIGNATURE).write_bytes(signature)
            for name, record in manifest.files.items():
                self._file(prefix + name, record, path_in(folder, name))
            if self._next is not None and self._next.name.startswith(prefix):
                raise DamagedError(f"the member {self._next.name[:120]!r} is not in its manifest")

        return "imported" if self._cache.adopt(manifest.key, fill) else "there"

    def _file(self, name: str, record: FileRecord, target: Path) -> None:
        """Write the next member to `target`, which must be what its manifest says."""
        source = self._opened(name)
        if self._size() != record.size:
            raise DamagedError(f"{name[-80:]!r} has {self._size()} bytes, and its manifest says {record.size}")
        digest = hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                while data := self._read(source, _CHUNK):
                    digest.update(data)
                    file.write(data)
        except OSError as error:
            if error.errno not in _BAD_NAME:
                raise
            raise DamagedError(f"no file can be named {target.name[:80]!r}: {error.strerror}") from None
        if digest.hexdigest() != record.sha256:
            raise DamagedError(f"{name[-80:]!r} has the wrong SHA-256")
        self._advance()

    def _small(self, name: str, most: int) -> bytes:
        """The next member's bytes."""
        source = self._opened(name)
        if self._size() > most:
            raise DamagedError(f"{name[-80:]!r} has {self._size()} bytes, more than any of its kind")
        data = self._read(source, most)
        self._advance()
        return data

    def _opened(self, name: str) -> IO[bytes]:
        """The next member, which must be a plain file of this name."""
        member = self._next
        if member is None or member.name != name:
            raise DamagedError(f"{name[-80:]!r} is not where it should be in the archive")
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None or member.size < 0:
            raise DamagedError(f"{name[-80:]!r} is not a regular file")
        source = self._tar.extractfile(member)
        if source is None:
            raise DamagedError(f"{name[-80:]!r} is not a regular file")
        return source

    def _read(self, source: IO[bytes], most: int) -> bytes:
        self._stream.allow(most)
        with broken_is_a_read_error():
            data = source.read(most)
        self._unread -= len(data)
        return data

    def _size(self) -> int:
        return self._next.size if self._next else 0

    def _skip(self) -> None:
        self._skipped += 1
        if self._skipped > _SKIPPED_MEMBERS:
            raise tarfile.ReadError(f"more than {_SKIPPED_MEMBERS} members that belong to no entry")
        self._advance()

    def _advance(self) -> None:
        """Go to the next member, past what was not read of this one: as much as an entry may have, and no more."""
        self._stream.allow(min(max(0, self._unread), self._cache.limit))
        with broken_is_a_read_error():
            self._next = self._tar.next()
        self._unread = self._size()

    def _end(self) -> None:
        """
        Raises:
            tarfile.ReadError: the archive does not end as `pack` ends it.
        """
        if self._next is None:
            raise tarfile.ReadError("its end is missing: it was cut off, or made by something else")
        self._advance()
        if self._next is not None:
            raise tarfile.ReadError(f"the member {self._next.name[:80]!r} follows its end")
