"""What the cache asks of a file system beyond pathlib: reads that cannot hang, writes that are whole, durability."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

__all__ = ["clear", "open_plain", "read_plain", "sha256_of", "sync", "sync_folder", "write_whole"]


def open_plain(path: Path, access: int = os.O_RDONLY) -> int:
    """A handle of a file or folder; not through a link, nor waiting for a pipe's other end: neither was published.

    Raises:
        OSError: it cannot be opened, or is a link.
    """
    return os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_plain(path: Path) -> bytes:
    """The bytes of a file, see `open_plain`.

    Raises:
        OSError: it cannot be read.
    """
    handle = open_plain(path)
    try:
        return os.read(handle, os.fstat(handle).st_size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a small file, and its folder if need be, so that readers see all of the old text or all of the new.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex}")  # short: `path` may have the longest name that there can be
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove a folder, or the file that somebody put in the place of one; what cannot be removed stays."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


def sync(folder: Path) -> None:
    """Have a folder and all that is in it on the disk, whatever happens to the machine next.

    Raises:
        OSError: it cannot be written.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk.

    Raises:
        OSError: it cannot be written.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
