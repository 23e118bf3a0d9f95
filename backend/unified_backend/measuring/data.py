"""A user's files as samples of a model: images and other files as bytes, arrays, requests as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unified_backend.calibration import read_requests
from unified_backend.errors import ConfigError, Refused
from unified_backend.samples import FixedDims, arrays_of, fitting, from_file
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["read_data", "require_data"]

_MOST = 64  # samples: perf_analyzer reads all of them at each start
_TENSORS = (".npz", ".npy", ".json")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_OPEN = 224  # of a side of an image that the model leaves open


def read_data(
    path: Path, signature: Signature, batched: bool, fixed: FixedDims
) -> tuple[str, list[Mapping[str, Array]]]:
    """The samples in a file or folder, and what they are in words.

    Args:
        signature: of requests; with a batch dimension first if `batched`.
        fixed: input name -> axis -> size, of open dimensions.

    Raises:
        Refused: it is not there, is empty, or holds what does not fit the model.
    """
    files = require_data(path)
    tensors = [file for file in files if file.suffix in _TENSORS]
    if tensors:
        rows = [row for file in tensors[:_MOST] for row in _rows(file, signature, batched)]
        return f"{_count(len(rows[:_MOST]), 'sample')} of {path}{_more(len(rows))}", rows[:_MOST]
    chosen = files[:_MOST]
    spec = _only_input(path, signature)
    if spec.dtype == "STRING":
        dims = [int(size or 1) for size in (spec.shape or ())[batched:]]
        kind = "image" if all(file.suffix.lower() in _IMAGES for file in chosen) else "file"
        words = f"{_count(len(chosen), kind)} of {path}, as encoded bytes{_more(len(files))}"
        return words, [{spec.name: np.array([file.read_bytes()], object).reshape(dims)} for file in chosen]
    layout = _layout(path, spec, batched, fixed)
    size = f"{layout.width} by {layout.height}"
    words = f"{_count(len(chosen), 'image')} of {path}, decoded and resized to {size} here{_more(len(files))}"
    return words, [{spec.name: layout.tensor(file, spec).reshape(layout.shape)} for file in chosen]


def require_data(path: Path) -> list[Path]:
    """The files in a file or folder.

    Raises:
        Refused: there are none.
    """
    files = [path] if path.is_file() else sorted(child for child in path.rglob("*") if child.is_file())
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        why = "it holds no file" if path.is_dir() else "there is no such file or folder"
        raise Refused(f"--data {path} cannot be used", why, "Name a folder of images, or of .npz files")
    return files


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _more(number: int) -> str:
    return f", the first of {number}" if number > _MOST else ""


def _only_input(path: Path, signature: Signature) -> TensorSpec:
    if len(signature.inputs) == 1:
        return signature.inputs[0]
    names = ", ".join(spec.name for spec in signature.inputs)
    raise Refused(
        f"--data {path} cannot be used",
        f"the model has the inputs {names}, and a file is one",
        "Give .npz files with an array under each input's name",
    )


def _rows(path: Path, signature: Signature, batched: bool) -> list[Mapping[str, Array]]:
    """The samples of one file of tensors."""
    try:
        if path.suffix == ".npz":
            whole = [from_file(path, signature)] if not batched else [_from_npz(path, signature)]
        elif path.suffix == ".npy":
            whole = [_from_npy(path, signature, batched)]
        else:
            whole = read_requests(path, signature)
    except ConfigError as error:
        raise Refused(error.what.replace("the calibration data", "the data"), error.why, error.do) from None
    if not batched:
        return list(whole)
    return [
        {name: array[number] for name, array in feeds.items()}
        for feeds in whole
        for number in range(min(len(array) for array in feeds.values()))
    ]


def _from_npz(path: Path, signature: Signature) -> dict[str, Array]:
    """With the batch dimension, which the file may leave out."""
    arrays = arrays_of(path)
    feeds = {}
    for spec in signature.inputs:
        if spec.name not in arrays:
            names = ", ".join(one.name for one in signature.inputs)
            raise ConfigError(
                f"the data {path.name} has no array named {spec.name}",
                f"it holds {', '.join(arrays) or 'nothing'}, and the model's inputs are {names}",
                "Save it with numpy.savez(path, **{input name: array})",
            )
        feeds[spec.name] = fitting(_batch(arrays[spec.name], spec), spec, path.name)
    return feeds


def _from_npy(path: Path, signature: Signature, batched: bool) -> dict[str, Array]:
    spec = _only_input(path, signature)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = str(error).splitlines()[0][:200]
        raise ConfigError(f"the data {path.name} cannot be read", why, "Save it with numpy.save") from None
    return {spec.name: fitting(_batch(array, spec) if batched else array, spec, path.name)}


def _batch(array: Array, spec: TensorSpec) -> Array:
    return array[None] if array.ndim == len(spec.shape or ()) - 1 else array


class _Layout:
    """Where an image goes in a tensor."""

    def __init__(self, shape: Sequence[int], channels_last: bool, alone: bool) -> None:
        self.shape = (1, *shape) if alone else tuple(shape)  # of a sample
        self.channels_last = channels_last
        self.channels = shape[-1] if channels_last else shape[0]
        self.height, self.width = shape[:2] if channels_last else shape[1:]

    def tensor(self, path: Path, spec: TensorSpec) -> Array:
        """The image's pixels: 0 to 255 in integers, 0 to 1 in floats."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                mode = "RGB" if self.channels == 3 else "L"
                pixels = np.asarray(image.convert(mode).resize((self.width, self.height)))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise Refused(f"{path} is no image", str(error), "Take it out of the folder of --data") from None
        pixels = pixels.reshape(self.height, self.width, self.channels)
        pixels = pixels if self.channels_last else pixels.transpose(2, 0, 1)
        if spec.dtype.startswith("FP"):
            return np.ascontiguousarray(pixels.astype(np.float32) / 255).astype(spec.numpy)
        return np.ascontiguousarray(pixels).astype(spec.numpy)


def _layout(path: Path, spec: TensorSpec, batched: bool, fixed: FixedDims) -> _Layout:
    own = fixed.get(spec.name, {})
    sizes = [own.get(axis, size) for axis, size in enumerate(spec.shape or ())]
    shape = sizes[1:] if batched or len(sizes) == 4 else sizes
    written = [-1 if size is None else size for size in sizes[batched:]]
    channels = [axis for axis in (0, 2) if len(shape) == 3 and shape[axis] in (1, 3)]
    if not channels or spec.dtype == "BF16":
        raise Refused(
            f"--data {path} cannot be used",
            f"the input {spec.name} is {spec.dtype} {written}, and no image",
            "Give .npz files with an array under each input's name",
        )
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise Refused(
            f"--data {path} cannot be used",
            f"the input {spec.name} is a tensor, and Pillow, which decodes images, is not installed",
            "Run `pip install pillow`, or give .npz files",
        ) from None
    filled = [int(size) if isinstance(size, int) else _OPEN for size in shape]
    return _Layout(filled, channels[0] == 2, alone=not batched and len(sizes) == 4)
