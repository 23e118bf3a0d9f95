"""What basic-pitch heard in each window -> notes: when, which, how loud.

The network says for each frame and each of 88 keys whether a note sounds and whether one begins
(https://arxiv.org/abs/2203.09893). Steps and constants are those of the package basic-pitch 0.4.0 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from unified_backend.stages.user import stage

RATE, HOP, WINDOW = 22050, 256, 43844  # samples a second, a frame, a window
FRAMES, SHARED = 172, 30  # of a window, and those that it has in common with the next
FRAMES_A_SECOND = RATE // HOP  # as the package rounds it where it cuts off what is behind the last sample
BEGINS, SOUNDS = 0.5, 0.3  # from which on a note begins, and sounds
SHORTEST, QUIET = 11, 11  # frames: notes are longer, and end where it is quiet for so many
LOWEST, KEYS = 21, 88  # MIDI number of the first key
LATE = HOP / RATE * (FRAMES - WINDOW / HOP) + 0.0018  # seconds that each window adds; the end was found by experiment


@stage(
    inputs={"note": "FP32[-1,172,88]", "onset": "FP32[-1,172,88]", "length": "INT64[1,1]"},
    outputs={"start": "FP32[-1,1]", "end": "FP32[-1,1]", "pitch": "INT32[-1,1]", "amplitude": "FP32[-1,1]"},
)
def notes(note, onset, length):
    """Start and end in seconds, MIDI pitch and amplitude (0 to 1), [M, 1] each, by start and pitch.

    Args:
        note: how surely each key sounds.
        onset: how surely each key was just struck.
        length: of the sound, in samples.
    """
    count = int(length[0, 0] * (FRAMES_A_SECOND / RATE))
    sounding, struck = joined(note)[:count], joined(onset)[:count]
    energy = sounding.astype(np.float64)
    found = [*struck_notes(energy, with_rises(struck, sounding)), *held_notes(energy)]
    begins, ends, keys = np.array(sorted(found), int).reshape(-1, 3).T
    frames = np.arange(len(sounding))
    seconds = frames * (HOP / RATE) - LATE * (frames // FRAMES)
    loud = [sounding[begin:end, key].mean() for begin, end, key in zip(begins, ends, keys, strict=True)]
    return (
        seconds[begins].astype(np.float32)[:, None],
        seconds[ends].astype(np.float32)[:, None],
        (keys + LOWEST).astype(np.int32)[:, None],
        np.array(loud, np.float32)[:, None],
    )


def joined(windows: np.ndarray) -> np.ndarray:
    """[T, 88]: windows [K, 172, 88] in a row, each without half of what it shares on either side."""
    return windows[:, SHARED // 2 : FRAMES - SHARED // 2].reshape(-1, KEYS)


def with_rises(struck: np.ndarray, sounding: np.ndarray) -> np.ndarray:
    """[T, 88]: onsets that the network heard, or that a rise of what sounds over two frames tells."""
    before = np.pad(sounding.astype(np.float64), ((2, 0), (0, 0)))
    rises = np.minimum(before[2:] - before[1:-1], before[2:] - before[:-2])
    rises = np.maximum(rises, 0)
    rises[:2] = 0
    highest = rises.max(initial=0)
    return np.maximum(struck, rises * (struck.max(initial=0) / highest)) if highest > 0 else struck.astype(np.float64)


def struck_notes(energy: np.ndarray, onsets: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """First frame, frame behind the last, and key of notes that begin with an onset, latest first.

    What a note took of `energy`, and of the keys beside it, is gone afterwards.
    """
    peaks = np.zeros(onsets.shape, bool)
    peaks[1:-1] = (onsets[1:-1] > onsets[:-2]) & (onsets[1:-1] > onsets[2:]) & (onsets[1:-1] >= BEGINS)
    for begin, key in np.argwhere(peaks)[::-1]:
        end, quiet = followed(energy[:, key], begin, 1)
        if end - quiet - begin > SHORTEST:
            energy[begin : end - quiet, max(0, key - 1) : key + 2] = 0
            yield begin, end - quiet, key


def held_notes(energy: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Likewise of what still sounds without an onset, the loudest first: the package calls it melodia trick."""
    # Energy only ever goes: the loudest frame that is left is the next of this order that is still there.
    loudest = np.argsort(-energy, axis=None, kind="stable")[: np.count_nonzero(energy > SOUNDS)]
    for middle, key in zip(*np.unravel_index(loudest, energy.shape), strict=True):
        if energy[middle, key] <= SOUNDS:
            continue
        energy[middle, key] = 0
        end, quiet_behind = followed(energy[:, key], middle, 1)
        begin, quiet_before = followed(energy[:, key], middle, -1)
        for side in (slice(middle + 1, end), slice(begin + 1, middle)):
            energy[side, max(0, key - 1) : key + 2] = 0
        first, last = begin + 1 + quiet_before, end - 1 - quiet_behind
        if last - first > SHORTEST:
            yield first, last, key


def followed(energy: np.ndarray, start: int, step: int) -> tuple[int, int]:
    """How far a key sounds, forwards or backwards: the frame behind, and how many of the last are quiet."""
    frame, quiet = start + step, 0
    while 0 < frame < len(energy) and (step < 0 or frame < len(energy) - 1) and quiet < QUIET:
        quiet = quiet + 1 if energy[frame] < SOUNDS else 0
        frame += step
    return frame, quiet
