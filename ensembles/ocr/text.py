"""What the recogniser read -> the lines that it is sure of."""

from __future__ import annotations

import numpy as np
from unified_backend.stages.user import stage

SURE = 0.5  # text_score of rapidocr-onnxruntime 1.4.4


@stage(
    inputs={"found": "FP32[-1,4,2]", "read": "STRING[-1,1]", "confidence": "FP32[-1,1]"},
    outputs={"text": "STRING[-1,1]", "score": "FP32[-1,1]", "boxes": "FP32[-1,4,2]"},
)
def text(found, read, confidence):
    """Strings [K, 1], their confidences [K, 1] and corners [K, 4, 2] of the lines that stay."""
    kept = np.flatnonzero(confidence >= SURE)
    return read[kept], confidence[kept], found[kept]
