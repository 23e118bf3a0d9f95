"""A user's own DALI pipelines as stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from photographs import bomb, claiming, column, encoded, photographs, pixels, resized
from PIL import Image
from unified_backend.errors import ConfigError, EngineError, RequestError
from unified_backend.stages.dali_pipeline import PipelineStage, dali_stage

FILES = photographs()
HEAD = "from nvidia.dali import fn, pipeline_def, types\n"
THUMBNAILS = (
    HEAD
    + """
@pipeline_def
def thumbnails():
    files = fn.external_source(name="photo", dtype=types.UINT8, ndim=1)
    gain = fn.external_source(name="gain", dtype=types.FLOAT, ndim=1)
    image = fn.decoders.image(files, output_type=types.RGB)
    small = fn.resize(image, size=[30, 40], antialias=True, subpixel_scale=False)
    return fn.cast(small * gain[0], dtype=types.FLOAT), small
"""
)

STORED = (
    THUMBNAILS
    + """
pipeline = thumbnails(batch_size=1, num_threads=1, device_id=None)
open(__file__ + ".dali", "wb").write(pipeline.serialize())
"""
)


def made(folder: Path, text: str, name: str = "preprocess.py") -> PipelineStage:
    (folder / name).write_text(text)
    return dali_stage(folder / name, 4, 2, None, "m/1")


def test_a_pipeline_tells_what_goes_in_and_comes_out_and_runs(tmp_path: Path) -> None:
    stage = made(tmp_path, THUMBNAILS)
    specs = [(spec.name, spec.dtype, spec.shape) for spec in stage.signature.inputs]
    assert specs == [("photo", "BYTES", (None, 1)), ("gain", "FP32", (None, None))]
    assert [(spec.dtype, len(spec.shape or ())) for spec in stage.signature.outputs] == [("FP32", 4), ("UINT8", 4)]
    names = ["coffee", "chelsea", "tall"]
    gains = np.array([[1], [2], [0.5]], np.float32)
    result = stage.run({"photo": column(*(FILES[name] for name in names)), "gain": gains})
    scaled, small = (result.arrays[spec.name] for spec in stage.signature.outputs)
    for row, name in enumerate(names):
        expected = resized(pixels(FILES[name]), (30, 40)).astype(int)
        assert np.abs(small[row].astype(int) - expected)[1:-1, 1:-1].max() <= 1
        np.testing.assert_array_equal(scaled[row], small[row] * gains[row])


def test_a_bad_file_fails_alone_in_a_user_s_pipeline_too(tmp_path: Path) -> None:
    stage = made(tmp_path, THUMBNAILS)
    gains = np.ones((4, 1), np.float32)
    files = (FILES["coffee"], b"no image", b"", FILES["tall"])
    result = stage.run({"photo": column(*files), "gain": gains})
    assert sorted(result.failed) == [1, 2]
    assert "no image of a kind" in result.failed[1].why
    assert "it is empty" in result.failed[2].why
    good = stage.run({"photo": column(files[0], files[3]), "gain": gains[:2]})
    for name, array in good.arrays.items():
        np.testing.assert_array_equal(result.arrays[name], array)


BOMBS = {"PNG": bomb(9000), "JPEG": claiming(FILES["astronaut"], 60000)}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_picture_too_large_by_its_header_is_refused_and_nothing_is_allocated(tmp_path: Path, kind: str) -> None:
    stage = made(tmp_path, THUMBNAILS)
    gains = np.ones((3, 1), np.float32)
    most_memory()
    good = stage.run({"photo": column(FILES["coffee"], FILES["tall"]), "gain": gains[:2]})
    before = most_memory()
    result = stage.run({"photo": column(FILES["coffee"], BOMBS[kind], FILES["tall"]), "gain": gains})
    assert most_memory() - before < 60 << 20  # decoded, the PNG has 243 MB
    assert list(result.failed) == [1]
    side = {"PNG": 9000, "JPEG": 60000}[kind]
    assert f"photo cannot be used: it has {side} x {side} pixels, and 64000000 are allowed" in str(result.failed[1])
    for name, array in good.arrays.items():
        np.testing.assert_array_equal(result.arrays[name], array)


def most_memory() -> int:
    """Bytes that this process had resident at most since the last call."""
    most = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): from here on anew
    return int(most.split()[1]) << 10


def test_as_many_of_each_input_and_no_more_than_a_batch(tmp_path: Path) -> None:
    stage = made(tmp_path, THUMBNAILS)
    for files, gains in ((2, 3), (3, 2), (5, 5)):
        feeds = {"photo": column(*[FILES["tall"]] * files), "gain": np.ones((gains, 1), np.float32)}
        with pytest.raises(RequestError, match=f"there are {files} of photo, {gains} of gain, .* at most 4 of each"):
            stage.run(feeds)


def test_a_serialised_pipeline_is_the_same_stage(tmp_path: Path) -> None:
    stage = made(tmp_path, THUMBNAILS)
    made(tmp_path, STORED, "maker.py")
    stored = dali_stage(tmp_path / "maker.py.dali", 4, 1, None, "m/1")
    assert stored.signature == stage.signature
    feeds = {"photo": column(FILES["tall"]), "gain": np.ones((1, 1), np.float32)}
    for name, array in stage.run(feeds).arrays.items():
        np.testing.assert_array_equal(stored.run(feeds).arrays[name], array)


def test_a_pipeline_for_a_gpu_runs_where_there_is_none_and_gives_what_the_cpu_s_does(tmp_path: Path) -> None:
    feeds = {"photo": column(FILES["tall"], FILES["coffee"]), "gain": np.ones((2, 1), np.float32)}
    expected = made(tmp_path, THUMBNAILS).run(feeds).arrays
    mixed = THUMBNAILS.replace("image(files, ", 'image(files, device="mixed", ').replace("gain[0]", "gain.gpu()[0]")
    (tmp_path / "other").mkdir()
    for name, array in made(tmp_path / "other", mixed).run(feeds).arrays.items():
        np.testing.assert_array_equal(array, expected[name])
    made(tmp_path, STORED.replace("image(files, ", 'image(files, device="mixed", '), "maker.py")
    for name, array in dali_stage(tmp_path / "maker.py.dali", 4, 1, None, "m/1").run(feeds).arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_declared_outputs_need_no_trial(tmp_path: Path) -> None:
    text = THUMBNAILS.replace(
        "@pipeline_def\n", "@pipeline_def(output_dtype=[types.FLOAT, types.UINT8], output_ndim=[3, 3])\n"
    )
    assert made(tmp_path, text).signature.outputs == made(tmp_path, THUMBNAILS).signature.outputs


def test_ragged_outputs_are_told(tmp_path: Path) -> None:
    text = HEAD + (
        "@pipeline_def\ndef f():\n"
        '    return fn.decoders.image(fn.external_source(name="photo", dtype=types.UINT8, ndim=1))\n'
    )
    stage = made(tmp_path, text)
    with pytest.raises(RequestError, match=r"different shapes.*fn\.pad"):
        stage.run({"photo": column(FILES["tall"], FILES["coffee"])})
    alone = stage.run({"photo": column(FILES["tall"])}).arrays
    np.testing.assert_array_equal(next(iter(alone.values()))[0], pixels(FILES["tall"]))


def test_a_file_that_nvimagecodec_cannot_read_is_written_so_that_it_can(tmp_path: Path) -> None:
    text = HEAD + (
        "@pipeline_def(output_dtype=types.UINT8, output_ndim=3)\ndef f():\n"
        '    return fn.decoders.image(fn.external_source(name="photo", dtype=types.UINT8, ndim=1))\n'
    )
    turned = Image.Exif()
    turned[274] = 6  # by 90 degrees
    picture = pixels(FILES["tall"])
    made_of = made(tmp_path, text).run({"photo": column(encoded(picture, "WEBP", lossless=True, exif=turned))})
    [array] = made_of.arrays.values()
    np.testing.assert_array_equal(array[0], np.rot90(picture, -1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", r"does not run.*SyntaxError.*preprocess\.py:1"),
        ("import nothing_of_this_name\n", r"does not run.*ModuleNotFoundError.*preprocess\.py:1"),
        ("x = 1\n", "0 DALI pipelines.*@pipeline_def"),
        (HEAD + "@pipeline_def\ndef f():\n    return 1 / 0\n", r"f: ZeroDivisionError.*preprocess\.py:4"),
        (HEAD + "@pipeline_def\ndef f():\n    fn.constant(fdata=1.0)\n", "f: .*(nothing|output|None)"),
        (HEAD + "@pipeline_def\ndef f():\n    raise SystemExit(3)\n", r"f: SystemExit: 3 \(preprocess\.py:4\)"),
        (HEAD + "@pipeline_def\ndef f():\n    return fn.resise(1)\n", r"f: AttributeError.*preprocess\.py:4"),
        (
            HEAD + '@pipeline_def\ndef f():\n    return fn.external_source(name="x") * 2\n',
            "the external source x has no dtype or ndim",
        ),
        (HEAD + "@pipeline_def\ndef f():\n    return fn.constant(fdata=1.0)\n", "no external source"),
        (THUMBNAILS + THUMBNAILS.replace("def thumbnails", "def second"), "2 DALI pipelines.*thumbnails, second"),
    ],
)
def test_wrong_files_are_told_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, text)


def test_a_cut_pipeline_is_told(tmp_path: Path) -> None:
    made(tmp_path, STORED)
    whole = (tmp_path / "preprocess.py.dali").read_bytes()
    for size in (40, 200, len(whole) // 2):
        (tmp_path / "cut.dali").write_bytes(whole[:size])
        with pytest.raises((ConfigError, EngineError), match=r"cut\.dali|DALI"):
            dali_stage(tmp_path / "cut.dali", 4, 2, None, "m/1")


def test_an_mp3_is_decoded_where_a_pipeline_decodes_sounds(tmp_path: Path) -> None:
    text = (
        HEAD
        + """
@pipeline_def
def samples():
    files = fn.external_source(name="sound", dtype=types.UINT8, ndim=1)
    sound, rate = fn.decoders.audio(files, dtype=types.FLOAT)
    return sound[:, 0], rate
"""
    )
    sounds = Path(__file__).resolve().parents[1] / "data/sounds"
    mp3, flac = ((sounds / f"tones.{kind}").read_bytes() for kind in ("mp3", "flac"))
    rows = made(tmp_path, text).run({"sound": column(mp3, b"ID3" + bytes(50), flac)})
    assert list(rows.failed) == [1]
    assert "no MP3, or a damaged one" in rows.failed[1].why
    samples, rate = rows.arrays.values()
    np.testing.assert_allclose(samples[0], samples[1], atol=0.04)
    assert rate.tolist() == [16000, 16000]
