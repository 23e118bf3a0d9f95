"""What the recogniser read -> the lines that it is sure of."""

from __future__ import annotations

import numpy as np
from unified_backend.stages.user import stage

SURE = 0.5  # text_score of rapidocr-onnxruntime 1.4.4


@stage(
    inputs={"boxes": "FP32[-1,4,2]", "text": "STRING[-1,1]", "confidence": "FP32[-1,1]"},
    outputs={"text": "STRING[-1]", "score": "FP32[-1]", "boxes": "FP32[-1,4,2]"},
)
def text(boxes, text, confidence):
    """Strings [K], their confidences [K] and corners [K, 4, 2] of the lines that stay."""
    kept = np.flatnonzero(confidence[:, 0] >= SURE)
    return text[kept, 0], confidence[kept, 0], boxes[kept]
