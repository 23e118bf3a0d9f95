"""The presets of the stage `image`, and what a recipe for images is.

Each preset is the published pre-processing of a family of models. With x the decoded pixel, 0 to 255, each
recipe gives `(x * scale - mean) / std` for each channel, in the order of `color`.

- `imagenet`: shorter side to 256 (bilinear, antialiased), centre crop 224, scale 1/255, mean .485 .456 .406, std .229
  .224 .225. torchvision's `ImageClassification` transform of `IMAGENET1K_V1` weights.
- `torchvision`: the same with the shorter side to 232, as in `IMAGENET1K_V2` weights of torchvision.
- `keras-tf`: stretched to the input's size (nearest, as `keras.utils.load_img` does), x / 127.5 - 1.
  `keras.applications.imagenet_utils.preprocess_input(mode="tf")`.
- `keras-caffe`: stretched likewise, BGR, x - (103.939, 116.779, 123.68). The same with `mode="caffe"`.
- `efficientnet-lite`: shorter side to 256 (bicubic), centre crop 224, (x - 127) / 128. TensorFlow's TPU models,
  `efficientnet/lite`, whose own code crops before it resizes, with a bicubic filter that is not antialiased.
- `letterbox(640, 114)`: the whole image inside a square (bilinear, not antialiased), the rest filled with 114, scale
  1/255. Ultralytics' `LetterBox`, with the same rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["PRESETS", "Recipe"]

_IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "size": 224}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "image": {},
    "imagenet": {**_IMAGENET, "resize": 256},
    "torchvision": {**_IMAGENET, "resize": 232},
    "keras-tf": {"scale": 1 / 127.5, "mean": 1, "mode": "stretch", "interpolation": "nearest", "size": 224},
    "keras-caffe": {
        "scale": 1,
        "mean": (103.939, 116.779, 123.68),
        "color": "BGR",
        "mode": "stretch",
        "interpolation": "nearest",
        "size": 224,
    },
    "efficientnet-lite": {
        "scale": 1,
        "mean": 127,
        "std": 128,
        "resize": 256,
        "interpolation": "bicubic",
        "size": 224,
    },
    "letterbox": {"mode": "letterbox", "size": 640, "fill": 114, "antialias": False},
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done to an image; every field is an option of that name.

    Attributes:
        size: (height, width) of the result; None where it depends on the image (modes `fit` and `none`).
        mode: `crop`: shorter side to `resize`, then the centre; `stretch`: to `size` whatever the ratio; `letterbox`:
            inside `size`, the rest filled with `fill`; `fit`: see there; `none`: as it is.
        resize: length of the shorter side before the crop; None crops the image as it is.
        fit: (longest side, multiple): no side longer than the first, both rounded to multiples of the second.
        mean, std: one number for each channel.
        color: order of the channels.
        antialias: filter when an image gets smaller, as Pillow does.
        fill: 0 to 255, of what is outside the image.
        max_pixels: an image with more is refused before it is decoded.
        original: add the decoded image, and its size, as outputs.
        shapes: add the decoded image's size as an output.
    """

    size: tuple[int, int] | None
    mode: str
    resize: int | None
    fit: tuple[int, int]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str
    dtype: str
    color: str
    interpolation: str
    antialias: bool
    fill: float
    max_pixels: int
    original: bool
    shapes: bool
