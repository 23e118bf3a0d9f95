"""Whole images whose headers nvImageCodec cannot read, written so that it can; no pixel and no tag is another one."""

from __future__ import annotations

import struct

__all__ = ["readable"]

_BITS_PER_SAMPLE, _SHORT = 258, 3  # TIFF 6.0, sections 8 and 2
_ENTRY = 12  # bytes of a tag in a TIFF's directory


def readable(content: bytes) -> bytes:
    """The file itself, or one of the same pixels and tags.

    nvImageCodec 0.9 looks for the camera's rotation in a WebP file behind the picture, and misses that a chunk of odd
    length is followed by a byte of padding: Pillow's and libwebp's lossless files with EXIF end "unexpectedly". And it
    wants BitsPerSample in a TIFF file, which is 1 where it is left out: as Pillow does for black and white.
    """
    try:
        if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X":
            return _with_exif_first(content)
        if content[:4] in (b"II*\x00", b"MM\x00*"):
            return _with_depth(content, "<" if content[:1] == b"I" else ">")
    except struct.error:
        pass  # it is cut short, which its decoder tells
    return content


def _with_exif_first(content: bytes) -> bytes:
    """The WebP file with its EXIF chunk behind the header's."""
    end = min(8 + struct.unpack_from("<I", content, 4)[0], len(content))
    chunks, at = list[tuple[bytes, bytes]](), 12
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", content, at)
        chunks.append((name, content[at : at + 8 + length + length % 2]))
        at += 8 + length + length % 2
    exif = [chunk for name, chunk in chunks if name == b"EXIF"]
    if at > end + 1 or not exif:
        return content
    header, *others = [chunk for name, chunk in chunks if name != b"EXIF"]
    return content[:12] + header + b"".join(exif) + b"".join(others) + content[at:]


def _with_depth(content: bytes, order: str) -> bytes:
    """The TIFF file whose first directory says how many bits a sample has."""
    (begin,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, begin)
    tags = [struct.unpack_from(f"{order}H", content, begin + 2 + number * _ENTRY)[0] for number in range(count)]
    if _BITS_PER_SAMPLE in tags:
        return content
    before = sum(tag < _BITS_PER_SAMPLE for tag in tags) * _ENTRY
    entries = content[begin + 2 : begin + 2 + count * _ENTRY]
    added = struct.pack(f"{order}HHIHH", _BITS_PER_SAMPLE, _SHORT, 1, 1, 0)
    following = content[begin + 2 + count * _ENTRY :][:4]
    place = len(content) + len(content) % 2
    directory = struct.pack(f"{order}H", count + 1) + entries[:before] + added + entries[before:] + following
    return content[:4] + struct.pack(f"{order}I", place) + content[8:].ljust(place - 8, b"\x00") + directory
