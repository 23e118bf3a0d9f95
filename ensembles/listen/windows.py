"""Samples -> the overlapping windows that basic-pitch listens to, two seconds each."""

from __future__ import annotations

import numpy as np
from unified_backend.stages.user import stage

# Of basic-pitch 0.4.0 (Apache-2.0): AUDIO_N_SAMPLES, and 30 frames of FFT_HOP samples that two windows share.
WINDOW, SHARED = 43844, 30 * 256


@stage(
    inputs={"samples": "FP32[1,-1]", "length": "INT64[1,1]"},
    outputs={"windows": "FP32[-1,43844,1]"},
)
def windows(samples, length):
    """[K, 43844, 1]: from half an overlap before the first sample on; zeros beyond both ends."""
    own = samples[0, : length[0, 0]]
    step = WINDOW - SHARED
    count = -(-(len(own) + SHARED // 2) // step)
    padded = np.zeros((count - 1) * step + WINDOW, np.float32)
    padded[SHARED // 2 : SHARED // 2 + len(own)] = own
    return np.stack([padded[i * step : i * step + WINDOW] for i in range(count)])[..., None]
