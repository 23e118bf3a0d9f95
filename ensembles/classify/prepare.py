"""An encoded photograph -> what EfficientNet-Lite takes; a pipeline of NVIDIA DALI."""

from __future__ import annotations

from nvidia.dali import fn, pipeline_def, types

# As the networks were trained (TensorFlow's TPU models, efficientnet/lite): bicubic, the middle 224 of 256 pixels.
SHORTER, SIDE = 256, 224


@pipeline_def(output_dtype=[types.FLOAT], output_ndim=[3])
def prepare():
    """[3, 224, 224] in [-1, 1]."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    image = fn.decoders.image(encoded, device="mixed", output_type=types.RGB)
    small = fn.resize(
        image, resize_shorter=SHORTER, interp_type=types.INTERP_CUBIC, antialias=True, subpixel_scale=False
    )
    middle = fn.crop(small, crop=(SIDE, SIDE), rounding="truncate")
    return fn.crop_mirror_normalize(middle, mean=127, std=128, output_layout="CHW", dtype=types.FLOAT, name="x")
