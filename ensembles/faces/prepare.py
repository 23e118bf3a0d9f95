"""An encoded photograph -> its pixels, and the picture that the face detector looks at."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from unified_backend.stages.user import stage

SIDE = 192  # of the detector for faces up to five metres away (MediaPipe's full range)
MOST_PIXELS = 80_000_000  # 240 MB decoded


@stage(
    inputs={"encoded": "BYTES[1,1]"},
    outputs={"image": "UINT8[1,-1,-1,3]", "x": "FP32[1,192,192,3]"},
)
def prepare(encoded):
    """Pixels [1, H, W, 3] in RGB, and [1, 192, 192, 3] in [-1, 1]: all of it, in the middle of black."""
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
    """[1, 192, 192, 3]: what the detector takes."""
    scale = SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square = np.zeros((SIDE, SIDE, 3), np.float32)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    square[top : top + height, left : left + width] = np.asarray(small)
    return (square / np.float32(127.5) - 1)[None]
