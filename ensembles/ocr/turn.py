"""The classifier's answers -> lines the right way up."""

from __future__ import annotations

import numpy as np
from unified_backend.stages.user import stage

SURE = 0.9  # that a line is upside down (cls_thresh of rapidocr-onnxruntime 1.4.4)


@stage(
    inputs={"lines": "FP32[-1,3,48,-1]", "widths": "INT32[-1]", "turned": "FP32[-1,2]"},
    outputs={"upright": "FP32[-1,3,48,-1]"},
)
def turn(lines, widths, turned):
    """Lines [M, 3, 48, W]: those turned by 180 degrees that are upside down; `turned` is for 0 and for 180 degrees."""
    upright = np.array(lines)
    for i in np.flatnonzero(turned[:, 1] > SURE):
        upright[i, ..., : widths[i]] = lines[i, :, ::-1, : widths[i]][..., ::-1]
    return upright
