"""A WAV file -> its samples as basic-pitch takes them: mono, 22050 a second."""

from __future__ import annotations

import io
import math
import struct
import warnings

import numpy as np
from scipy import signal
from scipy.io import wavfile
from unified_backend.stages.user import stage

RATE = 22050  # of basic-pitch 0.4.0 (Apache-2.0)
MOST_SECONDS = 1800
LOWEST_RATE, HIGHEST_RATE = 1000, 384_000


@stage(
    inputs={"encoded": "BYTES[1,1]"},
    outputs={"samples": "FP32[1,-1]", "length": "INT64[1,1]"},
)
def prepare(encoded):
    """Samples [1, L] in [-1, 1], and L [1, 1]."""
    samples = decode(encoded[0, 0])
    return samples[None], np.array([[len(samples)]], np.int64)


def decode(encoded: bytes) -> np.ndarray:
    """[L] at `RATE`, the channels' mean."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that are not sound
            rate, sound = wavfile.read(io.BytesIO(encoded))
    except (ValueError, EOFError, struct.error) as error:
        raise ValueError(f"it is no WAV file that can be read: {error}") from None
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or len(sound) > MOST_SECONDS * rate:
        raise ValueError(f"the file has {len(sound)} samples at {rate} a second; it may have {MOST_SECONDS} seconds")
    if sound.dtype == np.uint8:
        sound = (sound.astype(np.float32) - 128) / 128
    elif sound.dtype.kind == "i":
        sound = sound.astype(np.float32) / -float(np.iinfo(sound.dtype).min)
    mono = np.atleast_2d(sound.T).mean(0, dtype=np.float32)
    if rate == RATE or not len(mono):
        return mono
    common = math.gcd(rate, RATE)
    return signal.resample_poly(mono, RATE // common, rate // common).astype(np.float32)
