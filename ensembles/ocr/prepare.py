"""An encoded photograph -> its pixels, and the picture that PP-OCR's detector looks at; a pipeline of NVIDIA DALI."""

from __future__ import annotations

from nvidia.dali import fn, math, pipeline_def, types

# The detector halves five times, and was trained where the shorter side is at least this long (limit_side_len of
# rapidocr-onnxruntime 1.4.4, Apache-2.0). That package makes 11,000 columns of a strip of 2000 x 130; here the longer
# side is held to what it holds the photograph itself to (max_side_len).
SHORTER, LONGER, MULTIPLE = 736, 2000, 32


@pipeline_def(output_dtype=[types.UINT8, types.FLOAT], output_ndim=[3, 3])
def prepare():
    """Pixels [H, W, 3] in RGB, and [3, h, w] in [-1, 1], blue first, sides multiples of 32."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    image = fn.decoders.image(encoded, device="mixed", output_type=types.RGB, name="image")
    sides = fn.cast(image.shape(), dtype=types.FLOAT)
    scale = math.max(1.0, SHORTER / math.min(sides[0], sides[1]))
    scale = math.min(scale, LONGER / math.max(sides[0], sides[1]))
    size = fn.stack(*(nearest_multiple(side * scale) for side in (sides[0], sides[1])))
    small = fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=False, subpixel_scale=False)
    small = fn.color_space_conversion(small, image_type=types.RGB, output_type=types.BGR)  # as it was trained
    x = fn.crop_mirror_normalize(small, mean=127.5, std=127.5, output_layout="CHW", dtype=types.FLOAT, name="x")
    return image, x


def nearest_multiple(side):
    """The multiple of `MULTIPLE` next to a side's whole pixels; halves go to the even one, as Python rounds."""
    whole = fn.cast(side, dtype=types.INT32)
    count, rest = whole // MULTIPLE, whole % MULTIPLE
    count = count + (rest > MULTIPLE // 2) + (rest == MULTIPLE // 2) * (count % 2)
    return fn.cast(math.max(count, 1) * MULTIPLE, dtype=types.FLOAT)
