"""The emotion classifier's answers -> a label and a score for each face."""

from __future__ import annotations

import numpy as np
from unified_backend.stages.user import stage

LABELS = np.array(
    ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"], object
)  # as fer 25.10.3 has them


@stage(
    inputs={"probabilities": "FP32[-1,7]"},
    outputs={"label": "STRING[-1,1]", "score": "FP32[-1,1]"},
)
def emotion(probabilities):
    """The likeliest label [M, 1] and its probability [M, 1]."""
    best = probabilities.argmax(1)[:, None]
    return LABELS[best], np.take_along_axis(probabilities, best, 1)
