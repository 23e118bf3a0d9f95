"""The stages around basic-pitch's network, with ONNX Runtime in its place: what the package hears, they hear."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import synthesised
from scipy import signal
from unified_backend.errors import RequestError
from unified_backend.stages.user_code import user_stage

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = json.loads((ROOT / "tests/data/listen/basic_pitch.json").read_text(encoding="utf-8"))
ANSWERS = ANSWERS["start, end, pitch, amplitude"]


class Listener:
    """The whole chain, step by step as a pipeline has it."""

    def __init__(self) -> None:
        names = ("prepare", "windows", "notes")
        self.stages = {
            name: user_stage(ROOT / "ensembles/listen" / f"{name}.py", 1, 1, None, "listen") for name in names
        }
        self.model = onnxruntime.InferenceSession((ROOT / "ensembles/listen/models/pitch.onnx").read_bytes())

    def listen(self, encoded: bytes) -> dict[str, np.ndarray]:
        """start, end, pitch and amplitude."""
        prepared = self.stage("prepare", encoded=np.array([[encoded]], object))
        windows = self.stage("windows", **prepared)["windows"]
        outputs = ["StatefulPartitionedCall:1", "StatefulPartitionedCall:2"]
        note, onset = self.model.run(outputs, {"serving_default_input_2:0": windows})
        return self.notes(note, onset, prepared["length"])

    def notes(self, note: np.ndarray, onset: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
        """start, end, pitch and amplitude, [M] each."""
        found = self.stage("notes", note=note, onset=onset, length=length)
        assert {array.shape[1:] for array in found.values()} == {(1,)}
        return {name: array[:, 0] for name, array in found.items()}

    def stage(self, name: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """What a stage makes, held to what it declares."""
        rows = self.stages[name].run(feeds)
        for error in rows.failed.values():
            raise error
        return dict(rows.arrays)


@pytest.fixture(scope="module")
def listener() -> Listener:
    """One for all tests."""
    return Listener()


@pytest.mark.parametrize("name", ["scale", "chords"])
def test_hears_what_the_package_hears(listener: Listener, name: str) -> None:
    found = listener.listen(synthesised.wav(getattr(synthesised, name)()))
    rows = sorted(zip(*(found[column].tolist() for column in ("start", "end", "pitch", "amplitude")), strict=True))
    wanted = sorted(ANSWERS[name])
    assert [row[2] for row in rows] == [row[2] for row in wanted]
    np.testing.assert_allclose(rows, wanted, atol=1e-3)


def test_a_scale_is_heard_note_by_note(listener: Listener) -> None:
    found = listener.listen(synthesised.wav(synthesised.scale()))
    loud = found["amplitude"] > 0.5  # harmonics are heard as notes of their own, softly
    assert tuple(found["pitch"][loud]) == synthesised.SCALE
    np.testing.assert_allclose(found["start"][loud], 0.25 + 0.5 * np.arange(8), atol=0.03)


@pytest.mark.parametrize(("name", "furthest"), [("scale.flac", 0.01), ("scale.mp3", 0.05)])
def test_compressed_files_are_the_same_notes(listener: Listener, name: str, furthest: float) -> None:
    """Both written by soundfile 0.14.0 with libsndfile 1.2.2."""
    found = listener.listen((ROOT / "tests/data/sounds" / name).read_bytes())
    loud = found["amplitude"] > 0.5
    assert tuple(found["pitch"][loud]) == synthesised.SCALE
    expected = listener.listen(synthesised.wav(synthesised.scale()))
    for column in ("start", "end", "amplitude"):
        np.testing.assert_allclose(found[column][loud], expected[column][expected["amplitude"] > 0.5], atol=furthest)


def test_another_rate_and_two_channels_are_the_same_notes(listener: Listener) -> None:
    samples = signal.resample_poly(synthesised.scale(), 44100 // 22050, 1)
    found = listener.listen(synthesised.wav(np.stack([samples, samples * 0.5], 1), 44100))
    loud = found["amplitude"] > 0.5
    assert tuple(found["pitch"][loud]) == synthesised.SCALE


@pytest.mark.parametrize("count", [0, 1, 100, 36164 - 3840, 36164 - 3839, 100_000])
def test_silence_of_any_length_has_no_notes(listener: Listener, count: int) -> None:
    found = listener.listen(synthesised.wav(np.zeros(count)))
    assert {name: array.shape for name, array in found.items()} == dict.fromkeys(
        ("start", "end", "pitch", "amplitude"), (0,)
    )


def test_windows_overlap_by_thirty_frames_and_what_lies_behind_the_length_is_not_heard(listener: Listener) -> None:
    samples = np.arange(1, 80_001, dtype=np.float32)[None]
    windows = listener.stage("windows", samples=samples, length=np.array([[70_000]]))["windows"]
    assert windows.shape == (3, 43844, 1)
    for before, after in itertools.pairwise(windows):
        np.testing.assert_array_equal(before[-30 * 256 :], after[: 30 * 256])
    assert not windows[0, : 15 * 256].any()
    assert windows[0, 15 * 256, 0] == 1
    assert windows.max() == 70_000


def test_a_note_across_two_windows_is_one(listener: Listener) -> None:
    note = np.zeros((2, 172, 88), np.float32)
    onset = np.zeros((2, 172, 88), np.float32)
    note[0, 100:157, 40] = note[1, 15:60, 40] = 0.9  # 15 frames at either end of a window are the other's too
    onset[0, 100, 40] = 0.8
    found = listener.notes(note, onset, np.array([[36164 * 2]]))
    assert found["pitch"].tolist() == [61]
    assert found["amplitude"] == pytest.approx([0.9])
    assert found["start"] == pytest.approx([85 * 256 / 22050], abs=1e-5)
    # From frame 172 of the whole on, times are earlier by what a window of 172 frames is longer than its samples.
    late = (172 * 256 - 43844) / 22050 + 0.0018
    assert found["end"] == pytest.approx([(142 + 45) * 256 / 22050 - late], abs=1e-5)


def test_a_note_that_is_too_short_is_none(listener: Listener) -> None:
    note, onset = np.zeros((2, 1, 172, 88), np.float32)
    note[0, 50:61, 40] = 0.9
    onset[0, 50, 40] = 0.8
    assert len(listener.notes(note, onset, np.array([[30_000]]))["pitch"]) == 0
    note[0, 50:62, 40] = 0.9
    assert listener.notes(note, onset, np.array([[30_000]]))["pitch"].tolist() == [61]


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"no sound at all", b"ID3" + bytes(99), synthesised.wav(np.zeros(9))[:30]]
)
def test_what_is_no_sound_file_is_the_requests_fault(listener: Listener, content: bytes) -> None:
    with pytest.raises(RequestError, match=r"prepare\.py: encoded cannot be used"):
        listener.stage("prepare", encoded=np.array([[content]], object))
