"""An encoded photograph -> its pixels, and the picture that PP-OCR's detector looks at."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from unified_backend.stages.pixels import resize
from unified_backend.stages.user import stage

# The detector halves five times, and was trained where the shorter side is at least this long (limit_side_len of
# rapidocr-onnxruntime 1.4.4, Apache-2.0). That package makes 11,000 columns of a strip of 2000 x 130; here the longer
# side is held to what it holds the photograph itself to (max_side_len).
SHORTER, LONGER, MULTIPLE = 736, 2000, 32
MOST_PIXELS = 80_000_000  # 240 MB decoded


@stage(
    inputs={"encoded": "BYTES[1,1]"},
    outputs={"image": "UINT8[1,-1,-1,3]", "x": "FP32[1,3,-1,-1]"},
)
def prepare(encoded):
    """Pixels [1, H, W, 3] in RGB, and [1, 3, h, w] in [-1, 1], blue first, sides multiples of 32."""
    image = decode(encoded[0, 0])
    return image[None], fit(image)


def decode(encoded: bytes) -> np.ndarray:
    """[H, W, 3] in RGB, upright as EXIF has it."""
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"the image has {opened.width} x {opened.height} pixels, over {MOST_PIXELS}")
            return np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("it is no image that Pillow knows") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from None


def fit(image: np.ndarray) -> np.ndarray:
    """[1, 3, h, w]: what the detector takes."""
    scale = max(1.0, SHORTER / min(image.shape[:2]))
    scale = min(scale, LONGER / max(image.shape[:2]))
    height, width = (max(MULTIPLE, round(int(side * scale) / MULTIPLE) * MULTIPLE) for side in image.shape[:2])
    pixels = resize(image, height, width)[..., ::-1].astype(np.float32)  # PP-OCR was trained on OpenCV's order
    return np.ascontiguousarray((pixels / np.float32(127.5) - 1).transpose(2, 0, 1)[None])
