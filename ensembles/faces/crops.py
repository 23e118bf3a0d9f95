"""Faces of a photograph -> grey squares as the emotion classifier takes them."""

from __future__ import annotations

import numpy as np
from unified_backend.stages.pixels import resize
from unified_backend.stages.user import stage

SIDE = 64
MARGIN = 0.1  # of the face's longer side, around it: fer 25.10.3 (MIT) takes 10 pixels
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@stage(
    inputs={"image": "UINT8[1,-1,-1,3]", "boxes": "FP32[-1,4]"},
    outputs={"faces": "FP32[-1,64,64,1]"},
)
def crops(image, boxes):
    """Squares [M, 64, 64, 1] in [-1, 1]; what of one lies outside the image is as its rim."""
    faces = np.array([face(image[0], box) for box in boxes], np.float32).reshape(-1, SIDE, SIDE, 1)
    return faces / np.float32(127.5) - 1


def face(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """[64, 64]: the square around one box, in grey."""
    centre, half = (box[:2] + box[2:]) / 2, max(float((box[2:] - box[:2]).max()), 1) * (0.5 + MARGIN)
    left, top = np.floor(centre - half).astype(int)
    right, bottom = np.ceil(centre + half).astype(int)
    rows = np.clip(np.arange(top, bottom), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, right), 0, image.shape[1] - 1)
    grey = np.rint(image[rows[:, None], columns] @ GREY).astype(np.uint8)
    return resize(grey, SIDE, SIDE)
