"""The stage `audio` on sound files, against NumPy and SciPy, and on files that are none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import column
from scipy import signal
from scipy.io import wavfile
from unified_backend.errors import ConfigError, RequestError
from unified_backend.stages.audio import AudioStage
from unified_backend.stages.expression import parse
from unified_backend.tensors import Array, TensorSpec

# tones(0.5, 16000), written by soundfile 0.14.0 with libsndfile 1.2.2.
SOUNDS = Path(__file__).resolve().parents[1] / "data/sounds"
SAMPLES, MEL = (None, None), (None, 80, None)


def stage(text: str, shape: Any = SAMPLES, most: int = 4) -> AudioStage:
    return AudioStage(parse(text)[0], TensorSpec("x", "FP32", shape), "sound", most, 2, "m/1")


def wav(samples: Array, rate: int) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def tones(seconds: float, rate: int) -> Array:
    """A chord that swells, all below 3 kHz."""
    time = np.arange(round(seconds * rate)) / rate
    chord = sum(np.sin(2 * np.pi * pitch * time + pitch) for pitch in (220, 441.7, 1333, 2900))
    return (0.2 * chord * np.sin(np.pi * time / seconds)).astype(np.float32)


def test_samples_are_those_of_the_file() -> None:
    left, right = tones(0.5, 16000), tones(0.5, 16000)[::-1]
    made = stage("audio(16000)").run({"sound": column(wav(np.stack([left, right], 1), 16000), wav(left, 16000))})
    np.testing.assert_allclose(made.arrays["x"], [(left + right) / 2, left], atol=1e-6)
    whole = (left * 32767).astype(np.int16)
    quantised = stage("audio").run({"sound": column(wav(whole, 16000))}).arrays["x"][0]
    np.testing.assert_allclose(quantised, whole / 32768, atol=4e-5)


@pytest.mark.parametrize(("given", "wanted"), [(44100, 22050), (8000, 16000), (48000, 16000), (22050, 16000)])
def test_resampling_equals_a_long_filter(given: int, wanted: int) -> None:
    sound = tones(0.5, given)
    made = stage(f"audio({wanted})").run({"sound": column(wav(sound, given))}).arrays["x"][0]
    assert abs(len(made) - 0.5 * wanted) <= 1
    expected = tones(0.5, wanted)
    assert np.abs(made[200:-200] - expected[200 : len(made) - 200]).max() < 2e-3
    poly = signal.resample_poly(sound.astype(float), wanted, given)
    assert np.abs(made[200:-200] - poly[200 : len(made) - 200]).max() < 2e-3


def test_shorter_sounds_are_filled_up_and_lengths_told() -> None:
    made = stage("audio").run({"sound": column(wav(tones(0.3, 16000), 16000), wav(tones(0.1, 16000), 16000))})
    assert made.arrays["x"].shape == (2, 4800)
    assert made.arrays["x_length"].tolist() == [[4800], [1600]]
    assert not made.arrays["x"][1, 1600:].any()


def test_a_fixed_length_cuts_and_fills() -> None:
    fixed = stage("audio(8000)", (None, 2000))
    long, short = tones(0.5, 8000), tones(0.1, 8000)
    made = fixed.run({"sound": column(wav(long, 8000), wav(short, 8000))}).arrays
    assert made["x_length"].tolist() == [[2000], [800]]
    np.testing.assert_allclose(made["x"][0], long[:2000], atol=1e-6)
    np.testing.assert_allclose(made["x"][1], np.pad(short, (0, 1200)), atol=1e-6)


def mel_reference(sound: Array, rate: int, bands: int, htk: bool) -> Array:
    """librosa's melspectrogram, from its formulas: n_fft 512, window 400, hop 160, power 2."""
    hann = np.pad(signal.get_window("hann", 400), 56)
    padded = np.pad(sound.astype(float), 256, mode="reflect")
    frames = np.stack([padded[at : at + 512] * hann for at in range(0, len(sound) + 1, 160)], 1)
    power = np.abs(np.fft.rfft(frames, axis=0)) ** 2

    def to_mel(hertz: Any) -> Any:
        if htk:
            return 2595 * np.log10(1 + np.asarray(hertz) / 700)
        return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4))

    grid = np.linspace(0, rate / 2, 400001)
    edges = np.interp(np.linspace(0, float(to_mel(rate / 2)), bands + 2), to_mel(grid), grid)
    bins = np.fft.rfftfreq(512, 1 / rate)
    up = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None] @ power


@pytest.mark.parametrize("formula", ["slaney", "htk"])
def test_mel_spectrogram_equals_its_formulas(formula: str) -> None:
    sound = tones(0.5, 16000)
    text = f"audio(16000, mel=80, n_fft=512, window=400, hop=160, formula={formula})"
    made = stage(text, MEL).run({"sound": column(wav(sound, 16000))}).arrays
    expected = mel_reference(sound, 16000, 80, formula == "htk")
    assert made["x"].shape == (1, *expected.shape)
    assert np.abs(made["x"][0] - expected).max() < 1e-4 * expected.max()
    assert made["x_length"].tolist() == [[expected.shape[1]]]
    decibels = stage(text.replace(")", ", db=true, floor=1e-6)"), MEL)
    made = decibels.run({"sound": column(wav(sound, 16000), wav(sound[:4000], 16000))}).arrays
    np.testing.assert_allclose(made["x"][0], 10 * np.log10(np.maximum(expected, 1e-6)), atol=0.02)
    assert made["x_length"].tolist() == [[51], [26]]
    np.testing.assert_allclose(made["x"][1, :, 26:], -60, atol=1e-4)


def crc(content: bytes, polynomial: int, bits: int) -> bytes:
    value = 0
    for byte in content:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> (bits - 1) else 0)) & ((1 << bits) - 1)
    return value.to_bytes(bits // 8, "big")


def flac(samples: Array, rate: int) -> bytes:
    """16-bit samples of one channel in frames of 4096, each verbatim."""
    length = ((rate << 44) | (15 << 36) | len(samples)).to_bytes(8, "big")
    file = b"fLaC\x80\x00\x00\x22" + (4096).to_bytes(2, "big") * 2 + bytes(6) + length + bytes(16)
    for number, begin in enumerate(range(0, len(samples), 4096)):
        part = samples[begin : begin + 4096]
        head = bytes([0xFF, 0xF8, 0x70, 0x08, number]) + (len(part) - 1).to_bytes(2, "big")
        frame = head + crc(head, 0x07, 8) + b"\x02" + part.astype(">i2").tobytes()
        file += frame + crc(frame, 0x8005, 16)
    return file


def test_flac_gives_what_its_samples_are() -> None:
    sound = (tones(0.7, 16000) * 32767).astype(np.int16)
    made = stage("audio").run({"sound": column(flac(sound, 16000))})
    np.testing.assert_allclose(made.arrays["x"], [sound / 32768], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "furthest"),
    [("tones.flac", 4e-5), ("tones-vorbis.ogg", 0.04), ("tones-opus.ogg", 0.04), ("tones.mp3", 0.04)],
)
def test_files_of_other_libraries_sound_as_what_they_were_made_of(name: str, furthest: float) -> None:
    made = stage("audio").run({"sound": column((SOUNDS / name).read_bytes())})
    assert not made.failed
    expected = tones(0.5, 16000)
    np.testing.assert_allclose(made.arrays["x"], [expected], atol=furthest)
    assert np.corrcoef(made.arrays["x"][0], expected)[0, 1] > 0.998


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_wav_of_any_number_of_bits(kind: type) -> None:
    sound = tones(0.2, 16000)
    whole = {np.uint8: sound * 127 + 128, np.int16: sound * 32767, np.int32: sound * np.float64(2**31 - 1)}
    made = stage("audio").run({"sound": column(wav(whole.get(kind, sound).astype(kind), 16000))})
    np.testing.assert_allclose(made.arrays["x"], [sound], atol=0.02 if kind == np.uint8 else 1e-4)


MP3 = (SOUNDS / "tones.mp3").read_bytes()
# MPEG-2.5 layer III, mono, 8000 samples a second of which a frame holds 576, at 8 kbit/s: 72 bytes of zeros.
SILENT_FRAME = b"\xff\xe3\x18\xc4" + bytes(68)
GOOD = wav(tones(0.2, 16000), 16000)
FLAC_OF_A_DAY = b"fLaC\x00\x00\x00\x22" + bytes(10) + ((16000 << 44) | (86400 * 16000)).to_bytes(8, "big") + bytes(16)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "it is empty"),
        (b"no sound at all", "Format not recognised"),
        (GOOD[:30], "No 'data' chunk marker"),
        (b"ID3\x04" + bytes(100), "no MP3, or a damaged one"),
        (MP3[:700], "no MP3, or a damaged one"),
        (b"\xff\xf3\x80\xc4" + bytes(100), "no MP3, or a damaged one"),
        (8500 * SILENT_FRAME, "it lasts 612 seconds"),
        (FLAC_OF_A_DAY, "it lasts 86400 seconds"),
        (wav(np.zeros(8000 * 700, np.uint8), 8000), "it lasts 700 seconds"),
    ],
)
def test_a_bad_file_fails_alone(file: bytes, reason: str) -> None:
    sounds = stage("audio")
    made = sounds.run({"sound": column(GOOD, file, GOOD)})
    assert list(made.failed) == [1]
    assert 'input "sound": the sound cannot be used' in made.failed[1].what
    assert reason in made.failed[1].why
    assert "\n" not in str(made.failed[1])
    again = sounds.run({"sound": column(GOOD, GOOD)})
    for name, array in again.arrays.items():
        np.testing.assert_array_equal(made.arrays[name], array)
    alone = sounds.run({"sound": column(file)})
    assert list(alone.failed) == [0]
    assert len(alone.arrays["x"]) == 0


def test_no_more_sounds_than_a_batch_has() -> None:
    with pytest.raises(RequestError, match="at most 1"):
        stage("audio", most=1).run({"sound": column(GOOD, GOOD)})


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("audio(rate=fast)", SAMPLES, "rate must be a whole number"),
        ("audio(windw=400)", SAMPLES, 'the option "windw".*Write window'),
        ("audio(mel=80, formula=bark)", MEL, "slaney or htk"),
        ("audio(mel=64)", MEL, r"\[-1, 80, -1\]"),
        ("audio", MEL, "Add mel=BANDS"),
        ("audio(mel=80, window=800)", MEL, "larger than n_fft"),
        ("audio(db=true)", SAMPLES, "db=True: it has no effect without mel=BANDS"),
        ("audio(window=400)", SAMPLES, "window=400: it has no effect without mel"),
        ("audio(mel=80, floor=1e-6)", MEL, "floor=1e-06: it has no effect without db=true"),
        ("audio(clip=100)", SAMPLES, 'the option "clip"'),
        ("audio(seconds=2)", (None, 16000), "makes 32000 samples"),
        ("audio", (None, 3, 224, 224), "sounds are FP32"),
        ("sound", SAMPLES, "it may be audio"),
    ],
)
def test_wrong_calls_name_the_parameter_and_what_it_may_be(text: str, shape: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        stage(text, shape)
    assert '"preprocess"' in caught.value.what
