"""Real photographs as encoded files, and the presets of images written with Pillow and NumPy alone."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image
from skimage import data
from unified_backend.tensors import Array

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def encoded(pixels: Array, kind: str = "JPEG", **options: Any) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def photographs() -> dict[str, bytes]:
    """Files of five sizes and kinds: square, wide, odd, tall, grey."""
    return {
        "astronaut": encoded(data.astronaut(), quality=95),
        "chelsea": encoded(data.chelsea()),
        "coffee": encoded(data.coffee(), "PNG"),
        "tall": encoded(np.ascontiguousarray(data.chelsea()[:, 60:231])),
        "camera": encoded(data.camera(), "PNG"),
    }


def bomb(side: int) -> bytes:
    """A whole PNG of black pixels: 60 kB for 20000 x 20000 of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, rows = zlib.compressobj(9), bytes((side + 1) * (side // 100))
    content = b"".join(packer.compress(rows) for _ in range(100)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def claiming(file: bytes, side: int) -> bytes:
    """A JPEG whose header says that it has so many pixels on each side."""
    at = file.index(b"\xff\xc0") + 5  # of its frame: marker, length and precision come before the height
    return file[:at] + struct.pack(">HH", side, side) + file[at + 4 :]


def column(*files: bytes) -> Array:
    """A batch of files, as requests bring it: [N, 1] of bytes."""
    array = np.empty((len(files), 1), object)
    array[:, 0] = files
    return array


def pixels(file: bytes) -> Array:
    """The picture, decoded by Pillow."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def resized(picture: Array, size: tuple[int, int], how: Any = Image.Resampling.BILINEAR) -> Array:
    """To (height, width), by Pillow."""
    return np.asarray(Image.fromarray(picture).resize(size[::-1], how))


def _triangle(x: Array) -> Array:
    return np.maximum(1 - abs(x), 0)


def _cubic(x: Array) -> Array:
    """Keys' cubic with a = -0.5, as Pillow and DALI have it."""
    x = abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


def _lanczos(x: Array) -> Array:
    return np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


FILTERS = {"bilinear": (_triangle, 1), "bicubic": (_cubic, 2), "lanczos": (_lanczos, 3)}  # with half their widths


def filtered(
    picture: Array, size: tuple[int, int], how: str = "bilinear", repeat: bool = True, clip: bool = False
) -> Array:
    """To (height, width) by an antialiased filter in double precision, columns first, rounded once.

    Args:
        repeat: beyond the border is the last pixel, as for DALI; else nothing, as for Pillow.
        clip: cut what is below 0 or above 255 between the two passes, as Pillow does.
    """
    rows, columns = (_weights(own, length, how, repeat) for own, length in zip(picture.shape[:2], size, strict=True))
    wide = columns @ picture.astype(float)
    wide = np.clip(wide, 0, 255) if clip else wide
    return np.clip(np.rint(np.tensordot(rows, wide, 1)), 0, 255)


def _weights(own: int, length: int, how: str, repeat: bool) -> Array:
    """[length, own]: what each pixel adds to each one of the result."""
    kernel, half = FILTERS[how]
    scale = own / length
    stretch = max(scale, 1.0)
    weights = np.zeros((length, own))
    for row, centre in zip(weights, (np.arange(length) + 0.5) * scale, strict=True):
        near = np.arange(int(centre - half * stretch) - 1, int(centre + half * stretch) + 2)
        near = near if repeat else near[(near >= 0) & (near < own)]
        shares = kernel((near + 0.5 - centre) / stretch)
        np.add.at(row, np.clip(near, 0, own - 1), shares / shares.sum())
    return weights


def cropped(picture: Array, shorter: int, crop: int, how: Any = Image.Resampling.BILINEAR) -> Array:
    """torchvision's Resize(shorter) and CenterCrop(crop)."""
    height, width = picture.shape[:2]
    small = min(height, width)
    height, width = int(shorter * height / small), int(shorter * width / small)
    picture = resized(picture, (height, width), how)
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    return picture[top : top + crop, left : left + crop]


def bilinear(picture: Array, size: tuple[int, int]) -> Array:
    """To (height, width) without antialiasing, pixel centres aligned, rounded to whole numbers."""
    taps = []
    for length, own in zip(size, picture.shape, strict=False):
        place = np.clip((np.arange(length) + 0.5) * own / length - 0.5, 0, own - 1)
        low = np.floor(place).astype(int)
        taps.append((low, np.minimum(low + 1, own - 1), place - low))
    (top, bottom, down), (left, right, across) = taps
    rows = picture[top] * (1 - down)[:, None, None] + picture[bottom] * down[:, None, None]
    return np.rint(rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None])


def letterboxed(picture: Array, side: int, fill: int) -> Array:
    """Ultralytics' LetterBox: round(side * ratio), and top and left of the border rounded down."""
    ratio = min(side / picture.shape[0], side / picture.shape[1])
    height, width = (int(np.floor(length * ratio + 0.5)) for length in picture.shape[:2])
    canvas = np.full((side, side, 3), fill, float)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = bilinear(picture, (height, width))
    return canvas
