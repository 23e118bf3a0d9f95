"""Quadrilaterals of a photograph -> lines of text as PP-OCR's classifier and recogniser take them."""

from __future__ import annotations

import math

import numpy as np
from unified_backend.stages.pixels import resize, straighten
from unified_backend.stages.user import stage

# Of rapidocr-onnxruntime 1.4.4 (Apache-2.0): rec_img_shape, cls_image_shape; a line is turned that is so much higher.
HEIGHT, NARROWEST, CLASSIFIER = 48, 320, 192
UPRIGHT = 1.5


@stage(
    inputs={"image": "UINT8[1,-1,-1,3]", "boxes": "FP32[-1,4,2]"},
    outputs={"lines": "FP32[-1,3,48,-1]", "widths": "INT32[-1]", "small": "FP32[-1,3,48,192]"},
)
def crops(image, boxes):
    """Lines [M, 3, 48, W] and, for the classifier, [M, 3, 48, 192]: in [-1, 1], blue first, zeros behind each.

    W is the widest line's, at least 320; `widths` says how much of it is each line's own.
    """
    cut = [line(image[0], corners) for corners in boxes]
    widest = max((HEIGHT * one.shape[1] / one.shape[0] for one in cut), default=0)
    width = max(NARROWEST, int(widest))
    padded = [padded_to(one, width) for one in cut]
    return (
        np.array([one for one, _ in padded], np.float32).reshape(-1, 3, HEIGHT, width),
        np.array([own for _, own in padded], np.int32),
        np.array([padded_to(one, CLASSIFIER)[0] for one in cut], np.float32).reshape(-1, 3, HEIGHT, CLASSIFIER),
    )


def line(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """[h, w, 3]: one line, straightened, and lying if it stood."""

    def side(a: int, b: int) -> float:
        return float(np.linalg.norm(corners[a] - corners[b]))

    height, width = int(max(side(0, 3), side(1, 2))), int(max(side(0, 1), side(2, 3)))
    found = straighten(image, corners, max(1, height), max(1, width))
    return np.rot90(found) if height >= UPRIGHT * width else found


def padded_to(image: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """[3, 48, width] and how much of the width is the line's."""
    own = min(width, math.ceil(HEIGHT * image.shape[1] / image.shape[0]))
    pixels = resize(image, HEIGHT, own)[..., ::-1].astype(np.float32)  # PP-OCR was trained on OpenCV's order
    padded = np.zeros((3, HEIGHT, width), np.float32)
    padded[..., :own] = (pixels / np.float32(127.5) - 1).transpose(2, 0, 1)
    return padded, own
