"""Samples made up to try a DALI pipeline on, where it does not say what comes out of it."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from collections.abc import Callable

import numpy as np

from unified_backend.formats.dali_file import Port
from unified_backend.tensors import Array, data_type

__all__ = ["KINDS", "sample"]

_OPEN = (32, 48)  # sizes for dimensions that nobody knows
_PICTURES = ((8, 8, 3), (16, 12, 1))  # width, height, channels
_SOUNDS = (8, 16)  # samples


def _picture(which: int) -> bytes:
    """Black pixels as a PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    width, height, channels = _PICTURES[which]
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + channels * width) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _sound(which: int) -> bytes:
    """Silence at 8 kHz as a WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as content:
        content.setparams((1, 2, 8000, _SOUNDS[which], "NONE", ""))
        content.writeframes(bytes(2 * _SOUNDS[which]))
    return file.getvalue()


KINDS: tuple[Callable[[int], bytes], ...] = (_picture, _sound)  # of files that a source of bytes may be of


def sample(port: Port, kind: Callable[[int], bytes], which: int) -> Array:
    """One of two samples, of different sizes, for an external source.

    Args:
        kind: of file, for a source of UINT8 with one dimension.
        which: 0 or 1.
    """
    if (port.dtype, port.rank) == ("UINT8", 1):
        return np.frombuffer(kind(which), np.uint8)
    row = data_type(port.dtype or "")
    assert row
    sizes = [_OPEN[which]] * (port.rank or 0)
    if port.rank == 3:
        sizes[2] = 3
    return np.zeros(sizes, row.numpy)
