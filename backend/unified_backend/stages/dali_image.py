"""A recipe for images as a DALI pipeline: the same definition for the CPU and for GPUs."""

from __future__ import annotations

from typing import Any

from unified_backend.gpus import Gpu
from unified_backend.stages.dali import arguments
from unified_backend.stages.presets import Recipe

__all__ = ["image_pipeline"]


def image_pipeline(recipe: Recipe, encoded: bool, max_batch_size: int, threads: int, gpu: Gpu | None) -> Any:
    """A pipeline, not yet built, with the external source `image`.

    Its outputs are the result, and where the recipe has them the decoded image and its shape (height, width).

    Args:
        encoded: the source holds files as UINT8 [bytes]; else decoded images as UINT8 [H, W, C].
    """
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(**arguments(max_batch_size, threads, gpu))
    decoded = types.GRAY if recipe.color == "GRAY" else types.RGB
    with pipeline:
        if encoded:
            files = fn.external_source(name="image", dtype=types.UINT8, ndim=1, no_copy=True)
            image = fn.decoders.image(files, device="mixed" if gpu else "cpu", output_type=decoded)
        else:
            image = fn.external_source(name="image", dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
            image = image.gpu() if gpu else image
            if recipe.color == "GRAY":
                image = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
        shape = fn.slice(_shape(image), start=[0], shape=[2], axes=[0])
        result = _normalised(_sized(image, recipe), recipe)
        extra = ([image] if recipe.original else []) + ([shape] if recipe.original or recipe.shapes else [])
        pipeline.set_outputs(result, *extra)
    return pipeline


def _shape(image: Any) -> Any:
    """(height, width, channels) on the CPU, as the decoder turned the image."""
    from nvidia.dali import types

    return image.shape(dtype=types.INT64)


def _sized(image: Any, recipe: Recipe) -> Any:
    """The image at the recipe's size. Sizes are computed in whole numbers, as the sources of the presets do."""
    from nvidia.dali import fn, math

    sides = _shape(image)
    height, width = sides[0], sides[1]
    match recipe.mode:
        case "none":
            return image
        case "stretch":
            assert recipe.size
            return fn.resize(image, size=[float(side) for side in recipe.size], **_filter(recipe))
        case "crop":
            assert recipe.size
            if recipe.resize is not None:
                # torchvision.transforms.functional: the longer side is int(size * long / short)
                short = math.min(height, width)
                height, width = recipe.resize * height // short, recipe.resize * width // short
                image = fn.resize(image, size=_pair(height, width), **_filter(recipe))
            # int(round((side - crop) / 2)), where Python rounds halves to even
            starts = [
                (side - crop) // 2 + ((side - crop) % 2) * (((side - crop) // 2) % 2)
                for side, crop in zip((height, width), recipe.size, strict=True)
            ]
            return _window(image, starts, recipe, "error")
        case "letterbox":
            assert recipe.size
            rows, columns = recipe.size
            # min(rows / height, columns / width) without divisions, then round(side * ratio)
            tall = height * columns >= width * rows
            numerator = tall * rows + (1 - tall) * columns
            denominator = tall * height + (1 - tall) * width
            height = math.max((2 * height * numerator + denominator) // (2 * denominator), 1)
            width = math.max((2 * width * numerator + denominator) // (2 * denominator), 1)
            image = fn.resize(image, size=_pair(height, width), **_filter(recipe))
            return _window(image, [-((rows - height) // 2), -((columns - width) // 2)], recipe, "pad")
        case _:
            # PP-OCR's DetResizeForTest(limit_type="max"): shrink to the limit, truncate, round to multiples
            longest, multiple = recipe.fit
            long = math.max(height, width)
            limit = math.min(long, longest)
            scaled = [side * limit // long for side in (height, width)]
            sizes = [_rounded(side, multiple) * multiple for side in scaled]
            return fn.resize(image, size=_pair(*sizes), **_filter(recipe))


def _rounded(side: Any, multiple: int) -> Any:
    """round(side / multiple) in whole numbers, a half to the even neighbour as in Python; at least 1."""
    from nvidia.dali import math

    whole, rest = side // multiple, side % multiple
    above = (2 * rest > multiple) + (2 * rest == multiple) * (whole % 2)
    return math.max(whole + above, 1)


def _pair(height: Any, width: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.cast(fn.stack(height, width), dtype=types.FLOAT)


def _filter(recipe: Recipe) -> dict[str, Any]:
    from nvidia.dali import types

    kinds = {
        "nearest": types.INTERP_NN,
        "bilinear": types.INTERP_LINEAR,
        "bicubic": types.INTERP_CUBIC,
        "lanczos": types.INTERP_LANCZOS3,
    }
    # Without subpixel_scale=False the picture is shifted by a fraction of a pixel: 155 of 255 off where edges are.
    return {"interp_type": kinds[recipe.interpolation], "antialias": recipe.antialias, "subpixel_scale": False}


def _window(image: Any, starts: list[Any], recipe: Recipe, outside: str) -> Any:
    from nvidia.dali import fn, types

    assert recipe.size
    return fn.slice(
        image,
        start=fn.cast(fn.stack(*starts), dtype=types.INT32),
        shape=list(recipe.size),
        axes=[0, 1],
        out_of_bounds_policy=outside,
        fill_values=recipe.fill,
    )


def _normalised(image: Any, recipe: Recipe) -> Any:
    from nvidia.dali import fn, types

    if recipe.color == "BGR":
        image = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.BGR)
    return fn.crop_mirror_normalize(
        image,
        dtype={"FP32": types.FLOAT, "FP16": types.FLOAT16, "UINT8": types.UINT8}[recipe.dtype],
        output_layout="CHW" if recipe.layout == "NCHW" else "HWC",
        mean=[mean / recipe.scale for mean in recipe.mean],
        std=[std / recipe.scale for std in recipe.std],
    )
