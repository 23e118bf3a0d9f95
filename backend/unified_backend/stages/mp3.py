"""MP3 files, which DALI does not decode, as WAV files, which it does."""

from __future__ import annotations

import importlib
import math
import struct

from unified_backend.stages.audio_recipe import too_long

__all__ = ["as_wav", "is_mp3"]

_FLOAT = 3  # WAVE_FORMAT_IEEE_FLOAT of mmreg.h
_LARGEST = 1 << 31  # bytes of samples: a WAV file counts them in 32 bits
_MISSING = "it is an MP3, and what decodes these is not installed (pip install miniaudio)"


def is_mp3(content: bytes) -> bool:
    """Whether a file begins as an MP3 does: with an ID3 tag, or the header of a frame of layer III (ISO 11172-3)."""
    return content[:3] == b"ID3" or (len(content) > 1 and content[0] == 0xFF and content[1] & 0xE6 == 0xE2)


def as_wav(content: bytes, max_seconds: float = math.inf) -> bytes:
    """The samples of an MP3 file as a WAV file of 32-bit floats, without what its encoder added at either end.

    A file that is cut short is decoded as far as it goes.

    Raises:
        ValueError: it is longer than `max_seconds`, it cannot be decoded, or the decoder is not installed.
    """
    try:
        miniaudio = importlib.import_module("miniaudio")
    except ImportError:
        raise ValueError(_MISSING) from None
    try:
        told = miniaudio.mp3_get_info(content)
        if told.duration > max_seconds:
            raise ValueError(too_long(told.duration, max_seconds))
        if (size := 4 * told.num_frames * told.nchannels) > _LARGEST:
            raise ValueError(f"its samples would take {size / 1e9:.1f} GB, and {_LARGEST / 1e9:.1f} are taken")
        made = miniaudio.mp3_read_f32(content)
    except miniaudio.DecodeError as error:
        raise ValueError(f"it is no MP3, or a damaged one: {error}") from None
    samples: bytes = made.samples.tobytes()
    channels, rate = made.nchannels, made.sample_rate
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, _FLOAT, channels, rate, 4 * channels * rate, 4 * channels, 32)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI", b"RIFF", len(body)) + body
