"""Zip files from strangers: how large the directory is before it is read, and what is wrong with the members."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import BinaryIO

from unified_backend.formats.excerpts import excerpt

__all__ = ["DAMAGE", "directory_size", "trap"]

_MOST_MEMBERS = 100_000
# What is packed may be this often as large; weights, as frameworks write them, are not packed at all.
_MOST_RATIO, _SMALL = 100, 64 * 2**20
_TAIL = 22 + 65535  # bytes: the end record and the longest comment
# A zip whose directory or members are not what they say raises any of these.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


def trap(members: list[zipfile.ZipInfo], size: int, most_text: int) -> str | None:
    """What is wrong with an archive, by its directory alone; None if it may be unpacked.

    Args:
        size: of the file, in bytes.
        most_text: bytes that a member in JSON may unpack to.
    """
    if len(members) > _MOST_MEMBERS:
        return f"it has {len(members)} members"
    if len({member.filename for member in members}) < len(members):
        return "two of its members have one name"
    if sum(member.compress_size for member in members) > size:
        return "its members overlap"
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
            return f'its member "{excerpt(member.filename)}" leads out of the folder it is unpacked in'
        if member.external_attr >> 16 & 0o170000 == 0o120000:
            return f'its member "{excerpt(member.filename)}" is a symbolic link'
        if member.flag_bits & 1:
            return f'its member "{excerpt(member.filename)}" is encrypted'
        most = most_text if name.suffix == ".json" else max(_SMALL, _MOST_RATIO * member.compress_size)
        if member.file_size > most:
            return f'its member "{excerpt(member.filename)}" would unpack to {member.file_size} bytes'
    return None


def directory_size(file: BinaryIO) -> int | None:
    """Bytes of a zip's directory as its end records state them, before anything is made of it."""
    end = file.seek(0, 2)
    file.seek(max(0, end - _TAIL - 76))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        return None
    sizes = [struct.unpack_from("<L", tail, at + 12)[0]]
    # Of a file of more than 4 GiB, in the record that a locator in front of the end names.
    if tail[max(0, at - 20) : at].startswith(b"PK\x06\x07") and at >= 76:
        sizes.append(struct.unpack_from("<Q", tail, at - 76 + 40)[0])
    real = [size for size in sizes if size != 0xFFFFFFFF]
    file.seek(0)
    return max(real) if real else None
