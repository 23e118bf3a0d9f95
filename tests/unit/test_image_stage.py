"""The stage `image` on real photographs, against Pillow and NumPy, and on files that are none."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from photographs import (
    FILTERS,
    IMAGENET,
    bomb,
    column,
    cropped,
    encoded,
    filtered,
    letterboxed,
    photographs,
    pixels,
    resized,
)
from PIL import Image, ImageOps
from unified_backend.errors import ConfigError, RequestError
from unified_backend.stages.expression import parse
from unified_backend.stages.image import ImageStage
from unified_backend.tensors import Array, TensorSpec

FILES = photographs()
NCHW, NHWC, OPEN = (None, 3, 224, 224), (None, 224, 224, 3), (None, 3, None, None)
MEAN, STD = map(np.array, IMAGENET)


def stage(text: str, shape: Any = NCHW, dtype: str = "FP32", encoded: bool = True, most: int = 8) -> ImageStage:
    return ImageStage(parse(text)[0], TensorSpec("x", dtype, shape), "image", encoded, most, 2, None, "m/1")


def normal(picture: Array) -> Array:
    return ((picture / 255 - MEAN) / STD).transpose(2, 0, 1)


def far_off(one: Array, other: Array, tolerance: float = 1.01) -> Array:
    """Rows and columns [count, 2] of the pixels of two [H, W, C] that differ by more than a step of 255."""
    return np.argwhere((np.abs(one.astype(float) - other) > tolerance).any(-1))


def on_the_border(places: Array, size: tuple[int, int]) -> bool:
    """Whether all of them are outermost pixels."""
    return bool(((places == 0) | (places == np.array(size) - 1)).any(1).all())


@pytest.fixture(scope="module")
def imagenet() -> ImageStage:
    return stage("imagenet")


@pytest.mark.parametrize(
    ("text", "shape", "reference", "unit", "tolerance"),
    [
        ("imagenet", NCHW, lambda p: normal(cropped(p, 256, 224)), 1 / 255 / STD.min(), 1.01),
        ("torchvision", NCHW, lambda p: normal(cropped(p, 232, 224)), 1 / 255 / STD.min(), 1.01),
        ("imagenet(size=192)", OPEN, lambda p: normal(cropped(p, 219, 192)), 1 / 255 / STD.min(), 1.01),
        ("letterbox", OPEN, lambda p: letterboxed(p, 640, 114).transpose(2, 0, 1) / 255, 1 / 255, 1.01),
        ("letterbox(320, 0)", OPEN, lambda p: letterboxed(p, 320, 0).transpose(2, 0, 1) / 255, 1 / 255, 1.01),
        ("image(mode=stretch, color=BGR, mean=(1, 2, 3), std=2, scale=1)", NHWC,
         lambda p: (filtered(p, (224, 224))[..., ::-1] - np.array([1.0, 2, 3])) / 2, 0.5, 1.01),
        # Pillow cuts what overshoots 0 to 255 between the two passes of a bicubic filter; see below.
        ("efficientnet-lite", NHWC,
         lambda p: (cropped(p, 256, 224, Image.Resampling.BICUBIC) - 127.0) / 128, 1 / 128, 5.01),
    ],
)  # fmt: skip
def test_preset_equals_its_reference(
    text: str, shape: Any, reference: Callable[[Array], Array], unit: float, tolerance: float
) -> None:
    made = stage(text, shape).run({"image": column(*FILES.values())})
    assert not made.failed
    for name, row in zip(FILES, made.arrays["x"], strict=True):
        expected = reference(pixels(FILES[name]))
        assert row.shape == expected.shape
        assert np.abs(row - expected).max() <= tolerance * unit, name
        assert np.abs(row - expected).mean() <= 0.25 * unit, name


@pytest.mark.parametrize("how", FILTERS)
@pytest.mark.parametrize("size", [(224, 224), (30, 40), (700, 900)])
def test_filters_equal_double_precision_everywhere(how: str, size: tuple[int, int]) -> None:
    made = stage(f"image(size={size}, crop=none, scale=1, interpolation={how})", (None, None, None, 3))
    for name, row in zip(FILES, made.run({"image": column(*FILES.values())}).arrays["x"], strict=True):
        assert not len(far_off(row, filtered(pixels(FILES[name]), size, how))), name


@pytest.mark.parametrize("size", [(224, 224), (30, 40), (700, 900)])
def test_stretched_images_differ_from_pillow_s_on_the_border_alone(size: tuple[int, int]) -> None:
    made = stage(f"image(size={size}, crop=none, scale=1)", (None, None, None, 3))
    for name, row in zip(FILES, made.run({"image": column(*FILES.values())}).arrays["x"], strict=True):
        expected = resized(pixels(FILES[name]), size)
        assert on_the_border(far_off(row, expected), size), name
        assert not len(far_off(row, expected, 14.01)), name
        # and there for this one reason
        assert not len(far_off(expected, filtered(pixels(FILES[name]), size, repeat=False))), name


@pytest.mark.parametrize("name", FILES)
def test_a_bicubic_filter_differs_from_pillow_s_by_what_pillow_cuts(name: str) -> None:
    picture = pixels(FILES[name])
    pillow = resized(picture, (224, 224), Image.Resampling.BICUBIC)
    assert not len(far_off(pillow, filtered(picture, (224, 224), "bicubic", repeat=False, clip=True), 2.01))
    made = stage("efficientnet-lite", NHWC).run({"image": column(FILES[name])}).arrays["x"][0] * 128 + 127
    height, width = (256 * side // min(picture.shape[:2]) for side in picture.shape[:2])
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    whole = filtered(picture, (height, width), "bicubic")
    assert not len(far_off(made, whole[top : top + 224, left : left + 224]))


@pytest.mark.parametrize("name", ["astronaut", "camera"])
def test_nearest_neighbours_differ_from_pillow_s_at_ties_alone(name: str) -> None:
    # From 512 to 224 the centres 3, 10, 17... lie exactly between two pixels; Pillow and DALI take either one.
    made = stage("keras-tf", NHWC).run({"image": column(FILES[name])}).arrays["x"][0]
    places = far_off((made + 1) * 127.5, resized(pixels(FILES[name]), (224, 224), Image.Resampling.NEAREST))
    assert (places % 7 == 3).any(1).all()


@pytest.mark.parametrize("name", ["chelsea", "coffee", "tall"])
def test_keras_presets(name: str) -> None:
    near = resized(pixels(FILES[name]), (224, 224), Image.Resampling.NEAREST).astype(float)
    tf = stage("keras-tf", NHWC).run({"image": column(FILES[name])}).arrays["x"][0]
    np.testing.assert_allclose(tf, near / 127.5 - 1, atol=1e-5)
    caffe = stage("keras-caffe", NHWC).run({"image": column(FILES[name])}).arrays["x"][0]
    np.testing.assert_allclose(caffe, near[..., ::-1] - np.array([103.939, 116.779, 123.68]), atol=1e-4)


def test_a_preset_with_a_hyphen_takes_options() -> None:
    made = stage("keras-tf(size=(64, 96), color=BGR)", (None, None, None, 3)).run({"image": column(FILES["coffee"])})
    near = resized(pixels(FILES["coffee"]), (64, 96), Image.Resampling.NEAREST)[..., ::-1].astype(float)
    np.testing.assert_allclose(made.arrays["x"][0], near / 127.5 - 1, atol=1e-5)


def test_target_decides_layout_size_type_and_color() -> None:
    half = stage("imagenet", (None, 160, 192, 3), "FP16").run({"image": column(FILES["coffee"])}).arrays["x"]
    assert (half.shape, half.dtype) == ((1, 160, 192, 3), np.float16)
    grey = stage("image(crop=none)", (None, 1, 28, 28), "UINT8").run({"image": column(FILES["camera"])}).arrays["x"]
    expected = np.asarray(Image.open(io.BytesIO(FILES["camera"])).resize((28, 28), Image.Resampling.BILINEAR))
    assert on_the_border(far_off(grey[0, 0][..., None], expected[..., None]), (28, 28))


def test_decoded_images_give_what_their_files_give(imagenet: ImageStage) -> None:
    raw = stage("imagenet", encoded=False)
    pictures = np.stack([pixels(FILES["astronaut"]), pixels(FILES["camera"])])
    made = raw.run({"image": pictures}).arrays["x"]
    files = imagenet.run({"image": column(FILES["astronaut"], FILES["camera"])}).arrays["x"]
    np.testing.assert_array_equal(made, files)
    odd = raw.run({"image": pictures[:, :, :, :1]})
    assert "[height, width, 3]" in odd.failed[0].why


def test_any_batch_gives_what_single_images_give(imagenet: ImageStage) -> None:
    files = list(FILES.values())
    alone = np.concatenate([imagenet.run({"image": column(file)}).arrays["x"] for file in files])
    for size in (3, 8, 1, 2, 7):
        chosen = [row % len(files) for row in range(size)]
        batch = imagenet.run({"image": column(*(files[row] for row in chosen))}).arrays["x"]
        np.testing.assert_array_equal(batch, alone[chosen])


def test_an_answer_stays_after_later_batches(imagenet: ImageStage) -> None:
    first = imagenet.run({"image": column(FILES["astronaut"])}).arrays["x"]
    kept = first.copy()
    for name in ("coffee", "chelsea", "tall"):
        imagenet.run({"image": column(FILES[name])})
    np.testing.assert_array_equal(first, kept)


def test_fit_keeps_the_ratio_and_gives_the_original_too() -> None:
    fit = stage("image(fit=(400, 32), original=true)", OPEN)
    for name, size in {"astronaut": (384, 384), "chelsea": (256, 384), "tall": (288, 160)}.items():
        made = fit.run({"image": column(FILES[name])}).arrays
        picture = pixels(FILES[name])
        assert made["x"].shape[2:] == size
        np.testing.assert_array_equal(made["x_original"][0], picture)
        np.testing.assert_array_equal(made["x_shape"][0], picture.shape[:2])
        row = made["x"][0].transpose(1, 2, 0) * 255
        assert not len(far_off(row, filtered(picture, size)))
        assert on_the_border(far_off(row, resized(picture, size)), size)
    with pytest.raises(RequestError, match="different sizes are no batch"):
        fit.run({"image": column(FILES["chelsea"], FILES["tall"])})


def test_originals_of_a_batch_are_filled_up() -> None:
    made = stage("imagenet(original=true)").run({"image": column(FILES["chelsea"], FILES["tall"])}).arrays
    assert made["x_original"].shape == (2, 300, 451, 3)
    assert made["x_shape"].tolist() == [[300, 451], [300, 171]]
    np.testing.assert_array_equal(made["x_original"][1, :, :171], pixels(FILES["tall"]))
    assert not made["x_original"][1, :, 171:].any()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_kinds_of_files_and_of_pixels(imagenet: ImageStage, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(pixels(FILES["chelsea"]), kind, **options)
    made, expected = (imagenet.run({"image": column(some)}).arrays["x"] for some in (file, FILES["chelsea"]))
    np.testing.assert_array_equal(made, expected)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


CHELSEA = Image.fromarray(pixels(FILES["chelsea"]))
TURNED = Image.Exif()
TURNED[274] = 6  # by 90 degrees
BLACK_AND_WHITE = CHELSEA.convert("1")
# A TIFF of the other byte order, which Pillow does not write: eight tags, and no BitsPerSample among them.
BIG_ENDIAN = (
    b"MM\x00*"
    + struct.pack(">I", 8)
    + struct.pack(">H", 8)
    + b"".join(
        struct.pack(">HHII", tag, 4, 1, value)
        for tag, value in (
            (256, 451),
            (257, 300),
            (259, 1),
            (262, 1),
            (273, 110),
            (277, 1),
            (278, 300),
            (279, 57 * 300),
        )
    ).replace(struct.pack(">HHII", 259, 4, 1, 1), struct.pack(">HHIHH", 259, 3, 1, 1, 0))
    + bytes(4)
    + BLACK_AND_WHITE.tobytes()
)
VARIANTS = {
    "lossless WebP with EXIF": saved(CHELSEA, "WEBP", lossless=True, exif=TURNED),
    "lossless WebP with EXIF and a profile": saved(
        CHELSEA, "WEBP", lossless=True, exif=TURNED, icc_profile=b"an odd profile of 31 bytes, tag"
    ),
    "WebP with EXIF and transparency": saved(CHELSEA.convert("RGBA"), "WEBP", lossless=True, exif=TURNED),
    "animated WebP": saved(CHELSEA, "WEBP", lossless=True, save_all=True, append_images=[CHELSEA.rotate(90)]),
    "black and white TIFF": saved(BLACK_AND_WHITE, "TIFF"),
    "black and white TIFF, big endian": BIG_ENDIAN,
    "black and white TIFF, fax": saved(BLACK_AND_WHITE, "TIFF", compression="group4"),
    "TIFF of two pages": saved(CHELSEA, "TIFF", save_all=True, append_images=[CHELSEA.rotate(90)]),
    "black and white PNG": saved(BLACK_AND_WHITE, "PNG"),
    "CMYK JPEG": saved(CHELSEA.convert("CMYK"), "JPEG", quality=95),
    "progressive JPEG": saved(CHELSEA, "JPEG", progressive=True),
    "PNG with a palette": saved(CHELSEA.convert("P"), "PNG"),
    "PNG with transparency": saved(CHELSEA.convert("RGBA"), "PNG"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_kinds_give_the_pixels_that_pillow_reads(name: str) -> None:
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(VARIANTS[name]))).convert("RGB"))
    made = stage("image(mode=none, scale=1)", (None, None, None, 3)).run({"image": column(VARIANTS[name])})
    assert not made.failed
    np.testing.assert_array_equal(made.arrays["x"][0], expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_ones_count(kind: str) -> None:
    grey = np.asarray(CHELSEA.convert("L"))
    file = saved(Image.fromarray(grey.astype(np.uint16) * 257), kind)
    made = stage("image(mode=none, scale=1)", (None, None, None, 1)).run({"image": column(file)})
    np.testing.assert_array_equal(made.arrays["x"][0, ..., 0], grey)


@pytest.mark.parametrize("name", ["lossless WebP with EXIF", "black and white TIFF"])
def test_a_file_cut_anywhere_is_told(imagenet: ImageStage, name: str) -> None:
    file = VARIANTS[name]
    for size in (*range(8, 60, 3), len(file) // 2):
        assert list(imagenet.run({"image": column(file[:size], JPEG)}).failed) == [0]


def test_the_camera_s_rotation_is_applied(imagenet: ImageStage) -> None:
    picture, exif = Image.open(io.BytesIO(FILES["coffee"])), Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif, quality=98)
    turned = np.rot90(pixels(file.getvalue()), -1)
    made = imagenet.run({"image": column(file.getvalue())}).arrays["x"][0]
    assert np.abs(made - normal(cropped(turned, 256, 224))).max() <= 1.01 / 255 / STD.min()


JPEG = FILES["astronaut"]
BAD = {
    "empty": (b"", "it is empty"),
    "text": (b"no image at all", "begins with"),
    "gif": (encoded(pixels(JPEG), "GIF"), "a GIF"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "damaged or cut short"),
    "100 bytes of a JPEG": (JPEG[:100], "a damaged JPEG"),
    "half a PNG": (FILES["coffee"][:20000], "a damaged PNG"),
    "20 bytes of a PNG": (FILES["coffee"][:20], "a damaged PNG"),
    "bomb": (bomb(20000), "20000 x 20000 pixels"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_fails_alone(imagenet: ImageStage, case: str) -> None:
    file, reason = BAD[case]
    made = imagenet.run({"image": column(FILES["coffee"], file, FILES["chelsea"])})
    assert list(made.failed) == [1]
    error = made.failed[1]
    assert 'input "image": the image cannot be used' in error.what
    assert reason in error.why
    assert "\n" not in str(error)
    assert "nvidia" not in str(error)
    good = imagenet.run({"image": column(FILES["coffee"], FILES["chelsea"])})
    np.testing.assert_array_equal(made.arrays["x"], good.arrays["x"])
    assert list(imagenet.run({"image": column(file)}).failed) == [0]


def test_many_bad_files_among_good_ones(imagenet: ImageStage) -> None:
    files = [file for file, _ in BAD.values()][:6]
    made = imagenet.run({"image": column(*files, JPEG, FILES["tall"])})
    assert sorted(made.failed) == list(range(6))
    expected = imagenet.run({"image": column(JPEG, FILES["tall"])}).arrays["x"]
    np.testing.assert_array_equal(made.arrays["x"], expected)


def test_one_pixel_is_an_image(imagenet: ImageStage) -> None:
    made = imagenet.run({"image": column(encoded(np.full((1, 1, 3), 200, np.uint8), "PNG"))})
    expected = normal(np.full((224, 224, 3), 200))
    np.testing.assert_allclose(made.arrays["x"][0], expected, atol=1e-5)


def test_no_more_pixels_and_images_than_allowed() -> None:
    small = stage("image(crop=none, max_pixels=200000)", most=2)
    made = small.run({"image": column(FILES["tall"], FILES["astronaut"])})
    assert "max_pixels allows 200000" in made.failed[1].why
    with pytest.raises(RequestError, match="at most 2"):
        small.run({"image": column(*[JPEG] * 3)})


def test_an_image_smaller_than_the_crop_fails_alone() -> None:
    made = stage("image(resize=none)").run({"image": column(FILES["tall"], JPEG)})
    assert list(made.failed) == [0]
    assert "smaller than the crop, 224 x 224 pixels" in made.failed[0].why
    picture = pixels(JPEG)[144:368, 144:368]
    np.testing.assert_allclose(made.arrays["x"][0], picture.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "shape", "dtype", "message"),
    [
        ("imagnet", NCHW, "FP32", 'no stage "imagnet".*imagenet'),
        ("imagenet(sizes=224)", NCHW, "FP32", 'the option "sizes".*size'),
        ("imagenet(layout=NCWH)", NCHW, "FP32", "layout must be one of NCHW, NHWC"),
        ("imagenet(mean=(1, 2))", NCHW, "FP32", "mean must be one number or 3"),
        ("imagenet(std=0)", NCHW, "FP32", "std must be one number, not 0"),
        ("imagenet(resize=100)", NCHW, "FP32", "would be larger"),
        ("imagenet(size=0)", NCHW, "FP32", "size must be"),
        ("imagenet(224, 256)", NCHW, "FP32", "without a name"),
        ("imagenet(size=200)", NCHW, "FP32", r"is \[-1, 3, 224, 224\]"),
        ("imagenet(dtype=FP16)", NCHW, "FP32", "the input is FP32"),
        ("imagenet", (None, 3, 224), "FP32", "3 dimensions"),
        ("imagenet", (None, 7, 224, 224), "FP32", "7 channels"),
        ("imagenet(color=GRAY)", NCHW, "FP32", "GRAY has 1"),
        ("imagenet", NCHW, "INT64", "it is INT64"),
        ("imagenet", NCHW, "UINT8", "raw pixels"),
        ("image", OPEN, "FP32", "does not say a size"),
        ("image(mode=fit)", OPEN, "FP32", "fit=.LONGEST_SIDE"),
        ("image(interpolation=cubic)", NCHW, "FP32", "nearest, bilinear, bicubic, lanczos"),
        ("image(mode=crop, crop=none)", NCHW, "FP32", "crop=none: it has no effect with mode=crop"),
        ("image(mode=stretch, crop=center)", NCHW, "FP32", "crop=center: it has no effect with mode=stretch"),
        ("image(mode=stretch, resize=256)", NCHW, "FP32", "resize=256: it has no effect with mode=stretch"),
        ("imagenet(fill=114)", NCHW, "FP32", "fill=114: it has no effect with mode=crop"),
        ("image(224, mode=none)", OPEN, "FP32", "size=224: it has no effect with mode=none"),
        ("image(mode=crop, fit=(960, 32))", NCHW, "FP32", "fit=.960, 32.: it has no effect with mode=crop"),
        ("image(mode=none, antialias=false)", OPEN, "FP32", "antialias=false: it has no effect with mode=none"),
        ("image(max_pixels=many)", NCHW, "FP32", "max_pixels must be a whole number"),
    ],
)
def test_wrong_calls_name_the_parameter_and_what_it_may_be(text: str, shape: Any, dtype: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        stage(text, shape, dtype)
    assert '"preprocess"' in caught.value.what
