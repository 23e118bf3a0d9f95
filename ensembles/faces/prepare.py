"""An encoded photograph -> its pixels, and the picture that the face detector looks at; a pipeline of NVIDIA DALI."""

from __future__ import annotations

from nvidia.dali import fn, math, pipeline_def, types

SIDE = 192  # of the detector for faces up to five metres away (MediaPipe's full range)


@pipeline_def(output_dtype=[types.UINT8, types.FLOAT], output_ndim=[3, 3])
def prepare():
    """Pixels [H, W, 3] in RGB, and [192, 192, 3] in [-1, 1]: all of it, in the middle of black."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    image = fn.decoders.image(encoded, device="mixed", output_type=types.RGB, name="image")
    sides = fn.cast(image.shape(), dtype=types.FLOAT)
    scale = SIDE / math.max(sides[0], sides[1])
    size = fn.stack(*(math.max(1.0, math.floor(side * scale + 0.5)) for side in (sides[0], sides[1])))
    small = fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True, subpixel_scale=False)
    square = fn.crop(small, crop=(SIDE, SIDE), out_of_bounds_policy="pad", fill_values=0, rounding="truncate")
    x = fn.crop_mirror_normalize(square, mean=127.5, std=127.5, output_layout="HWC", dtype=types.FLOAT, name="x")
    return image, x
