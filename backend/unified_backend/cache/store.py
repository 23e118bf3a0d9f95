"""Entries on this disk: published whole or not at all, checked before use, set aside when damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from unified_backend.cache.files import clear, read_plain, sync, sync_folder
from unified_backend.cache.flight import one_at_a_time
from unified_backend.cache.holds import Hold, remove_abandoned, unheld
from unified_backend.cache.keys import Key
from unified_backend.cache.manifest import (
    MANIFEST,
    SIGNATURE,
    DamagedError,
    Manifest,
    UntrustedError,
    artefacts,
    damage,
)
from unified_backend.cache.memo import FileMemo
from unified_backend.cache.signing import Signer
from unified_backend.cache.usage import Usage

__all__ = ["Store", "Stored", "kind_of"]

logger = logging.getLogger(__name__)

_QUARANTINED_KEPT = 4
_NEW = "new-"  # begins the name of a folder that its maker has yet to take hold of
# Errors that say nothing of the entry: no handle or memory left, or another user's file.
_OWN_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)


@dataclasses.dataclass(frozen=True)
class Stored:
    """One entry on disk.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        last_used: Unix time in seconds.
        signed: whether a signature lies beside the manifest (not whether it is right).
    """

    path: Path
    manifest: Manifest
    last_used: float
    signed: bool

    @property
    def digest(self) -> str:
        """Its key."""
        return self.path.name


class Store:
    """The folder of entries, shared by the threads, processes and servers of the host.

    Layout: `entries/KIND/DI/DIGEST/` with `manifest.json` in each; `making/` for what is not published yet;
    `quarantine/` for what was set aside; `locks/`; `memo/`, see `FileMemo`; `usage/`, see `Usage`. With a remote tier
    also `outbox/`, what is still to be pushed, and `push.log`; `partial/`, large objects on their way here; `remote/`,
    when to ask a store again that failed.
    """

    def __init__(self, root: Path, signer: Signer | None = None) -> None:
        self.root = root
        self.signer = signer
        self.memo = FileMemo(root / "memo", signer.memo_secret if signer else None)
        self.usage = Usage(root / "usage")

    def place(self, key: Key) -> Path:
        """Where this key's entry lies, or would."""
        digest = key.digest
        return self.root / "entries" / key.kind / digest[:2] / digest

    def one_maker(self, key: Key) -> AbstractContextManager[None]:
        """The right to make this key's entry; waits for whoever has it."""
        return one_at_a_time(self.root / "locks", key.digest, f"kind={key.kind} key={key.digest[:12]}")

    @contextmanager
    def aside(self, key: Key) -> Iterator[Path]:
        """An empty folder on the same disk to make an entry in; what is left of it afterwards is removed."""
        making = self.root / "making"
        making.mkdir(parents=True, exist_ok=True)
        # Not mkdtemp: what it makes only this user can read, and an image built by root serves as another.
        name = f"{key.digest[:12]}-{uuid.uuid4().hex[:12]}"
        new, folder = making / f"{_NEW}{name}", making / name
        hold: Hold | None = None
        try:
            new.mkdir()
            hold = Hold.take(new)
            new.rename(folder)  # held from its first moment under this name: if nobody holds it, its maker is dead
            yield folder
        finally:
            for path in (new, folder):
                shutil.rmtree(path, ignore_errors=True)
            if hold:
                hold.release()

    def read(self, key: Key, repair: bool = True) -> tuple[Path, Manifest, Hold] | None:
        """This key's entry, held for as long as the Hold lives; None if there is none, or a damaged one.

        Args:
            repair: set a damaged one aside, for which the caller is this key's one maker: what lies there a moment
                later may be another maker's, whole and in use.
        """
        place = self.place(key)
        hold: Hold | None = None
        try:
            hold = Hold.take(place / MANIFEST)
            if hold is None:
                return None
            manifest = self._checked(place, hold.read(), self.memo.digest)
        except (DamagedError, OSError) as error:
            if repair and os.path.lexists(place):
                self._refuse(place, error)
            # Held until now: nobody can take it for evictable meanwhile, and then remove what has come in its place.
            if hold:
                hold.release()
            return None
        # Not the files' own times: those are what the memo recognises them by.
        with contextlib.suppress(OSError):
            os.utime(place / MANIFEST)
        return place, manifest, hold

    def check(self, place: Path, digest: Callable[[Path], str]) -> Manifest:
        """The manifest of the entry in `place`, after a look at every file.

        Args:
            digest: SHA-256 of a file's bytes, in hex: the memo's where files seen before need not be read again.

        Raises:
            DamagedError: something differs from what was published, or the signature is not the one wanted.
            OSError: it cannot be read, or is not there (any more).
        """
        hold = Hold.take(place / MANIFEST)
        if hold is None:
            raise FileNotFoundError(errno.ENOENT, "it is being removed", str(place))
        try:
            return self._checked(place, hold.read(), digest)
        finally:
            hold.release()

    def repair(self, place: Path, digest: Callable[[Path], str]) -> None:
        """Set an entry aside if it is (still) damaged; its next maker makes it again.

        Args:
            digest: SHA-256 of a file's bytes, in hex.

        Raises:
            OSError: the cache cannot be written.
        """
        with one_at_a_time(self.root / "locks", place.name, f"key={place.name[:12]}"):
            try:
                self.check(place, digest)
            except (DamagedError, OSError) as error:
                if os.path.lexists(place):
                    self._refuse(place, error)

    def publish(self, aside: Path, key: Key) -> tuple[Path, Hold | None]:
        """Move a finished folder, manifest included, to its place, so that readers see all of it or nothing.

        Returns:
            The entry's folder and a hold on it. Where locks do not work another maker may have been quicker: then it
            is that maker's entry.

        Raises:
            OSError: it cannot be written; nothing is published.
        """
        place = self.place(key)
        sync(aside)
        # Held before it can be seen: nothing evicts it on the way.
        hold = Hold.take(aside / MANIFEST)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.rename(place)
        except OSError:
            if found := self.read(key, repair=False):
                if hold:
                    hold.release()
                return found[0], found[2]
            try:
                if os.path.lexists(place):
                    self._set_aside(place)
                aside.rename(place)
            except OSError:
                if hold:
                    hold.release()
                raise
        with contextlib.suppress(OSError):  # it is there, and whole: at worst a power cut takes it away again
            sync_folder(place.parent)
        return place, hold

    def seal(self, aside: Path, manifest: Manifest) -> None:
        """Write the manifest of what was made in a folder, and its signature where this host signs."""
        data = manifest.to_bytes()
        (aside / MANIFEST).write_bytes(data)
        if self.signer:
            (aside / SIGNATURE).write_bytes(self.signer.sign(data))

    def places(self) -> list[Path]:
        """The folder of every entry, damaged ones too."""
        return sorted((self.root / "entries").glob("*/*/*"))

    def entries(self) -> Iterator[Stored]:
        """Every entry whose manifest can be read, in no order; none is touched or checked."""
        for path in self.places():
            try:
                manifest = Manifest.from_bytes(read_plain(path / MANIFEST), path.name)
                last_used = (path / MANIFEST).stat().st_mtime
            except (OSError, DamagedError):
                continue
            yield Stored(path, manifest, last_used, (path / SIGNATURE).exists())

    def remove(self, place: Path) -> bool:
        """Remove an entry; False if a live process holds it.

        Raises:
            OSError: it cannot be removed.
        """
        if place.is_symlink():
            place.unlink()
            return True
        manifest = place / MANIFEST
        with unheld(manifest if manifest.is_file() and not manifest.is_symlink() else place) as free:
            if not free:
                return False
            grave = self._elsewhere("making", place)
            place.rename(grave)
        clear(grave)
        return True

    def quarantine(self, place: Path, reason: str) -> None:
        """Set a damaged entry aside, out of every reader's way."""
        logger.warning('cache entry damaged entry=%s reason="%s" next=rebuilt', place.name[:12], reason)
        self.usage.count("quarantined")
        self._set_aside(place)

    def _set_aside(self, place: Path) -> None:
        try:
            place.rename(self._elsewhere("quarantine", place))
        except FileNotFoundError:
            return  # another process moved it first
        except OSError as error:
            logger.warning('cache entry not moved aside entry=%s reason="%s"', place.name[:12], error.strerror)
            return
        for old in sorted(self._quarantined(), key=_moved_at)[:-_QUARANTINED_KEPT]:
            clear(old)

    def last_set_aside(self, digest: str) -> float:
        """When an entry of this key was set aside, in Unix time; 0.0 if none that still lies there was."""
        moments = (_moved_at(path) for path in self._quarantined() if path.name.startswith(f"{digest}-"))
        return max(moments, default=0) / 1e9

    def sweep(self) -> None:
        """Remove what processes that died left behind."""
        left = list((self.root / "making").glob("*"))
        remove_abandoned(folder for folder in left if folder.name.startswith(_NEW))
        remove_abandoned((folder for folder in left if not folder.name.startswith(_NEW)), older_than=0)

    def strays(self) -> Iterator[tuple[Path, int, float]]:
        """What takes room and is no entry: of another version's schema, damaged, or in quarantine.

        Yields:
            its folder, bytes, and when it was last used or set aside, in Unix time.
        """
        entries = {entry.path for entry in self.entries()}
        for path in (*self.places(), *self._quarantined()):
            with contextlib.suppress(OSError):
                if path not in entries:
                    manifest = path / MANIFEST
                    used = (manifest if manifest.exists() else path).lstat().st_mtime
                    yield path, sum(file.lstat().st_size for file in artefacts(path).values()), used

    def _refuse(self, place: Path, error: DamagedError | OSError) -> None:
        """Say why an entry is not used, and set it aside unless this process is what is wrong."""
        if isinstance(error, UntrustedError):
            # Whole, for all this host knows, and good for those with another key: it goes when a better one comes.
            logger.warning('cache entry NOT USED entry=%s reason="%s"', place.name[:12], error)
        elif isinstance(error, DamagedError):
            self.quarantine(place, str(error))
        elif error.errno in _OWN_TROUBLE:
            logger.warning('cache entry not readable entry=%s reason="%s"', place.name[:12], error.strerror)
        else:
            file = Path(error.filename).name if error.filename else "a file"
            self.quarantine(place, f"{file} cannot be read ({error.strerror})")

    def _quarantined(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return list((self.root / "quarantine").iterdir())
        return []

    def _checked(self, place: Path, data: bytes, digest: Callable[[Path], str]) -> Manifest:
        # What a link leads to may be changed by others, who need not be able to write here.
        if place.is_symlink():
            raise DamagedError("its folder is a symbolic link")
        manifest = Manifest.from_bytes(data, place.name)
        if self.signer:
            signature = place / SIGNATURE
            self.signer.verify(data, read_plain(signature) if os.path.lexists(signature) else None)
        if found := damage(place, manifest, digest):
            raise DamagedError(found)
        return manifest

    def _elsewhere(self, folder: str, place: Path) -> Path:
        target = self.root / folder / f"{place.name}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def kind_of(place: Path) -> str:
    """The kind of the entry in a folder of the store, damaged or not."""
    return place.parent.parent.name


def _moved_at(path: Path) -> int:
    """When it was set aside, from its name; what has another name was not, and goes first."""
    moment = path.name.rpartition("-")[2]
    return int(moment) if moment.isdecimal() else 0
