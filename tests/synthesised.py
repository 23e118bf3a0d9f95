"""Sound for tests, made of sines: the same samples everywhere."""

from __future__ import annotations

import io
import wave

import numpy as np

__all__ = ["SCALE", "chords", "scale", "wav"]

RATE = 22050
SCALE = (60, 62, 64, 65, 67, 69, 71, 72)  # MIDI numbers: C major


def scale() -> np.ndarray:
    """[L] in [-1, 1]: the eight notes of C major, half a second each, after some silence."""
    return np.concatenate([np.zeros(RATE // 4), *(_note([number], 0.5) for number in SCALE)])


def chords() -> np.ndarray:
    """[L] in [-1, 1]: three chords and a low note under the last, over more than two windows of two seconds."""
    return np.concatenate([_note([60, 64, 67], 1.5), _note([62, 65, 69], 1.5), _note([36, 59, 62, 67], 2.0)])


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """A file of 16 bits and one channel, or as many as the second dimension."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return content.getvalue()


def _note(numbers: list[int], seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    rise = np.minimum(time / 0.01, 1) * np.exp(-2 * time) * np.minimum((seconds - time) / 0.02, 1)
    sound = np.zeros_like(time)
    for number in numbers:
        pitch = 440 * 2 ** ((number - 69) / 12)
        sound += sum(np.sin(2 * np.pi * pitch * harmonic * time) / harmonic**1.5 for harmonic in range(1, 6))
    return 0.4 * rise * sound / len(numbers)
