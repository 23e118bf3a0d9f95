"""Real photographs as encoded files, and the presets of images written with Pillow and NumPy alone."""

from __future__ import annotations

import io
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
