"""The stage `image`: encoded files, or decoded images, into the tensor that a model takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from unified_backend.engines.uploads import DeviceArray
from unified_backend.errors import RequestError
from unified_backend.gpus import Gpu
from unified_backend.stages import Rows
from unified_backend.stages.containers import readable
from unified_backend.stages.dali import DeviceRows, Pipeline, on_device, on_host, require_dali, samples_of
from unified_backend.stages.dali_image import image_pipeline
from unified_backend.stages.expression import Call
from unified_backend.stages.image_recipe import read_recipe
from unified_backend.stages.presets import Recipe
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["ImageStage"]

_OUTSIDE = "Slice can't be placed out of bounds"  # DALI 2.4
_SEND = "Send a JPEG, PNG, TIFF, WebP, BMP, PNM or JPEG 2000 file, whole"


class ImageStage:
    """A pipeline for one recipe; see `Stage`.

    Its outputs are the target; with the option `original` also `TARGET_original` (UINT8 [N, H, W, C], before it was
    resized; in a batch the smaller images are filled up with zeros at the bottom and on the right), and with `original`
    or `shapes` `TARGET_shape` (INT64 [N, 2]: height and width of each).

    Args:
        call: of `preprocess`.
        target: the engine's input that it feeds: [N, C, H, W] or [N, H, W, C], open dimensions allowed.
        input_name: name of the stage's own input.
        encoded: it holds files, BYTES [N, 1]; else RGB images, UINT8 [N, H, W, 3].
        gpu: decode and resize there; None for the CPU.
    """

    def __init__(
        self,
        call: Call,
        target: TensorSpec,
        input_name: str,
        encoded: bool,
        max_batch_size: int,
        threads: int,
        gpu: Gpu | None,
        label: str,
    ) -> None:
        """
        Raises:
            ConfigError: the call is wrong or does not fit the target, or DALI is not installed.
            EngineError: DALI does not build the pipeline.
        """
        recipe = read_recipe(call, target, label)
        require_dali(label, f'the parameter "preprocess" ({call.name})')
        self._recipe, self._encoded = recipe, encoded
        self._limit = max(1, max_batch_size)
        self.signature = _signature(recipe, target, input_name, encoded)
        self._input = input_name
        self._pipeline = Pipeline(lambda: image_pipeline(recipe, encoded, max_batch_size, threads, gpu), label)

    def run(self, feeds: Mapping[str, Array]) -> Rows:
        """The tensors for a batch."""
        outputs, failed = self._ran(feeds)
        made = zip(self.signature.outputs, outputs or (), strict=False)
        arrays = {spec.name: self._on_host(spec.name, tensors) for spec, tensors in made}
        return Rows(arrays if outputs else self._empty(), failed)

    def run_on_device(self, feeds: Mapping[str, Array], kept: Collection[str]) -> DeviceRows:
        """As `run`; outputs that are kept stay on the GPU, of a stage that has one. See `OnDevice`."""
        outputs, failed = self._ran(feeds)
        arrays: dict[str, DeviceArray | Array] = {}
        for spec, tensors in zip(self.signature.outputs, outputs or (), strict=False):
            array = on_device(tensors) if spec.name in kept else self._on_host(spec.name, tensors)
            if array is None:
                raise self._ragged()
            arrays[spec.name] = array
        return DeviceRows(arrays, failed)

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline.close()

    def _on_host(self, name: str, tensors: Any) -> Array:
        array = on_host(tensors)
        if array is None and name.endswith("_original"):
            array = _filled(tensors)
        if array is None:
            raise self._ragged()
        return array

    def _ran(self, feeds: Mapping[str, Array]) -> tuple[Sequence[Any] | None, dict[int, RequestError]]:
        given = feeds[self._input]
        if len(given) > self._limit:
            raise RequestError(
                f'input "{self._input}" has {len(given)} images',
                f"a batch has at most {self._limit}",
                "Send fewer at once",
            )
        failed: dict[int, RequestError] = {}
        rows, places = [], []
        for index, row in enumerate(given):
            reason = None
            if self._encoded:
                content = row if isinstance(row, bytes) else np.ravel(row)[0]
                row, reason = _file(content, self._recipe.max_pixels)
            elif row.ndim != 3 or row.shape[-1] != 3 or 0 in row.shape:
                reason = f"it has the shape {list(row.shape)}, and an image is [height, width, 3]"
            elif row.shape[0] * row.shape[1] > self._recipe.max_pixels:
                reason = _too_large(row.shape[1], row.shape[0], self._recipe.max_pixels)
            if reason:
                failed[index] = self._refused(reason)
            else:
                rows.append(np.ascontiguousarray(row))
                places.append(index)
        if not rows:
            return None, failed
        ran = self._pipeline.run({"image": rows})
        failed |= {places[row]: self._refused(why) for row, why in ran.failed.items()}
        return ran.outputs, failed

    def _refused(self, reason: str) -> RequestError:
        do = _SEND if self._encoded else "Correct it"
        if _OUTSIDE in reason and self._recipe.size:
            height, width = self._recipe.size
            reason = f"it is smaller than the crop, {width} x {height} pixels, and the option resize is none"
            do = "Send a larger one"
        return RequestError(f'input "{self._input}": the image cannot be used', reason, do)

    def _ragged(self) -> RequestError:
        return RequestError(
            f'input "{self._input}": images of different sizes are no batch',
            f"with mode={self._recipe.mode} the result's size depends on the image's",
            "Send them in requests of their own, or images of one size",
        )

    def _empty(self) -> dict[str, Array]:
        return {
            spec.name: np.empty((0, *(size if isinstance(size, int) else 0 for size in spec.shape[1:])), spec.numpy)
            for spec in self.signature.outputs
            if spec.shape
        }


def _signature(recipe: Recipe, target: TensorSpec, input_name: str, encoded: bool) -> Signature:
    height, width = recipe.size or (None, None)
    channels = len(recipe.mean)
    sides = (channels, height, width) if recipe.layout == "NCHW" else (height, width, channels)
    outputs = [TensorSpec(target.name, recipe.dtype, (None, *sides))]
    if recipe.original:
        outputs.append(
            TensorSpec(f"{target.name}_original", "UINT8", (None, None, None, 1 if recipe.color == "GRAY" else 3))
        )
    if recipe.original or recipe.shapes:
        outputs.append(TensorSpec(f"{target.name}_shape", "INT64", (None, 2)))
    dtype, rest = ("BYTES", (1,)) if encoded else ("UINT8", (None, None, 3))
    given = TensorSpec(input_name, dtype, (None, *rest))
    return Signature((given,), tuple(outputs))


def _file(content: Any, most: int) -> tuple[Any, str | None]:
    """An encoded file as DALI takes it, and why it cannot be used; its header is read, and nothing decoded."""
    from nvidia import nvimgcodec

    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    if not isinstance(content, (bytes, bytearray, memoryview)):
        return None, f"it is {type(content).__name__}, and must be the bytes of a file"
    if not content:
        return None, "it is empty"
    content = readable(bytes(content))
    try:
        header = nvimgcodec.CodeStream(content)
        width, height = int(header.width), int(header.height)
    except RuntimeError:
        return None, f"its header is that of no image that can be decoded ({_beginning(content[:12])})"
    if width * height > most:
        return None, _too_large(width, height, most)
    return np.frombuffer(content, np.uint8), None


def _beginning(content: bytes) -> str:
    kinds = {b"GIF8": "a GIF", b"%PDF": "a PDF", b"\xff\xd8\xff": "a damaged JPEG", b"\x89PNG": "a damaged PNG"}
    kind = kinds.get(content[:4]) or kinds.get(content[:3])
    return f"it is {kind}" if kind else f"it begins with {content!r}"


def _too_large(width: int, height: int, most: int) -> str:
    return f"it has {width} x {height} pixels, and the option max_pixels allows {most}"


def _filled(tensors: Any) -> Array:
    """Images of different sizes in one array, zeros at the bottom and on the right."""
    images = samples_of(tensors)
    sides = np.max([image.shape for image in images], axis=0)
    array = np.zeros((len(images), *sides), images[0].dtype)
    for row, image in zip(array, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return array
