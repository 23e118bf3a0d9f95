"""A sound file -> its samples as basic-pitch takes them: mono, 22050 a second; a pipeline of NVIDIA DALI."""

from __future__ import annotations

from nvidia.dali import fn, pipeline_def, types

RATE = 22050  # of basic-pitch 0.4.0 (Apache-2.0)


@pipeline_def(output_dtype=[types.FLOAT, types.INT64], output_ndim=[1, 1])
def prepare():
    """Samples [L] in [-1, 1], and [1]: L."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    sound, _ = fn.decoders.audio(encoded, downmix=True, sample_rate=RATE, dtype=types.FLOAT)
    samples = fn.copy(sound, name="samples")
    return samples, fn.cast(samples.shape(), dtype=types.INT64, name="length")
