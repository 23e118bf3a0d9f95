"""What did the user drop? Finds the one model in a version folder, by content and never by name alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from unified_backend import __version__
from unified_backend.cache.memo import FileMemo
from unified_backend.errors import SourceError
from unified_backend.formats.appearance import appearance
from unified_backend.formats.checkpoint import META, Checkpoint, graph_of, newest
from unified_backend.formats.dali import Dali
from unified_backend.formats.description import Description, choice
from unified_backend.formats.graphdef import GraphDef
from unified_backend.formats.keras_archive import KerasArchive
from unified_backend.formats.keras_hdf5 import KerasHdf5
from unified_backend.formats.mnn import Mnn
from unified_backend.formats.mxnet import MxNet
from unified_backend.formats.ncnn import Ncnn
from unified_backend.formats.onnx import Onnx
from unified_backend.formats.openvino_ir import OpenVinoIr
from unified_backend.formats.paddle import Paddle
from unified_backend.formats.pipeline import Pipeline
from unified_backend.formats.plan import plans
from unified_backend.formats.savedmodel import SavedModel
from unified_backend.formats.skops import Skops
from unified_backend.formats.tflite import TfLite
from unified_backend.formats.torch_export import TorchExport
from unified_backend.formats.torchscript import TorchScript
from unified_backend.formats.trees import LightGbm, XgBoost
from unified_backend.settings import Settings

__all__ = ["FORMATS", "Format", "Source", "find_source"]


class Format(Protocol):
    """One way of saving a model. A new format is one module and one line in `FORMATS`."""

    name: str

    def detect(self, path: Path) -> bool:
        """Whether `path` holds this format, by its content.

        Raises:
            SourceError: it does, and is broken (truncated, for example).
        """
        ...

    def companions(self, path: Path) -> list[str]:
        """Other files that belong to the model, as the model names them: relative to its folder.

        Raises:
            SourceError: the model cannot be read.
        """
        ...

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file says of itself, for the signature, inputs and outputs that the settings choose.

        Raises:
            SourceError: it is damaged, or does not say what goes in and what comes out; then its `facts` are there.
            ConfigError: a parameter names what the model has not got.
        """
        ...


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        *(Onnx(), SavedModel(), GraphDef(), Checkpoint(), KerasHdf5(), KerasArchive(), TfLite()),
        *(TorchScript(), TorchExport(), MxNet(), Paddle(), OpenVinoIr(), Mnn(), Ncnn()),
        *(Skops(), LightGbm(), XgBoost(), Dali()),
        *plans(),
        Pipeline(),
    )
}

_DEPTH = 3  # levels below the folder that are searched: `1/model.onnx/model.onnx` is the second
_LISTED = 8  # files that a message names before it only counts


@dataclasses.dataclass(frozen=True)
class Source:
    """The model a user dropped.

    Attributes:
        label: `model/version`, for messages.
        format: a key of `FORMATS`.
        path: the file that is the model.
        files: every file whose bytes matter, `path` first.
    """

    label: str
    format: str
    path: Path
    files: tuple[Path, ...]


def find_source(label: str, folder: Path, memo: FileMemo, chosen: str | None = None) -> Source:
    """The one model in a version folder.

    Args:
        label: `model/version`, for messages.
        folder: the version folder.
        memo: remembers what a file was found to be, so that an unchanged one is not parsed again.
        chosen: a file or folder inside `folder` that the user asked for, relative to it; of a checkpoint, any of its
            files, or its prefix.

    Raises:
        SourceError: there is none, there are several, the chosen one is missing, or the one there is broken.
    """
    if not folder.is_dir():
        raise SourceError(
            f"{label}: no version folder", f"{folder} is not a folder", "Make it and put the model file inside"
        )
    start = folder / _file_name(chosen or "")
    if chosen:
        start = graph_of(start)
    if not start.exists() or ".." in Path(chosen or "").parts:
        there = ", ".join(path.relative_to(folder).as_posix() for path in _regular_files(folder)[:_LISTED])
        raise SourceError(
            f'{label}: source "{chosen}" not found',
            f"the folder that the source must be in holds {there or 'no file'}",
            "Correct the parameter `source` (or default_model_filename) in config.pbtxt",
        )
    candidates = [start] if start.is_file() else _regular_files(start)
    try:
        found = [(form, path) for path in candidates for form in FORMATS.values() if form.detect(path)]
        if len(found) > 1:
            found = _apart_from_companions(found, memo)
        if len(found) == 1:
            form, path = found[0]
            names = _companions(form, path, memo)
            return Source(label, form.name, path, (path, *(_companion(folder, path, name) for name in names)))
    except SourceError as error:
        raise SourceError(f"{label}: {error.what}", error.why, error.do) from None
    if not found:
        raise SourceError(
            f"{label}: no model found",
            f"{start.name} is {appearance(start)}"
            if start.is_file()
            else f"{'the folder' if chosen is None else chosen} holds {_listing(folder, candidates)}",
            f"Put one model there; this version serves: {', '.join(FORMATS)}",
        )
    names = [path.relative_to(folder).as_posix() for _, path in found]
    raise SourceError(
        f"{label}: {len(found)} models found and none was chosen",
        f"{'the folder' if chosen is None else chosen} holds {', '.join(names[:_LISTED])}{_more(names)}",
        f"Keep one, or choose it: {choice('source', names[0], 'name its file in place of the folder')}",
    )


def _companions(form: Format, path: Path, memo: FileMemo) -> list[str]:
    # Another version of this package may see more of them. A folder's listing is no fact about one of its files.
    if form.name != "onnx":
        return form.companions(path)
    return list(memo.recall(path, f"companions {__version__}", lambda: form.companions(path)))


def _apart_from_companions(found: list[tuple[Format, Path]], memo: FileMemo) -> list[tuple[Format, Path]]:
    """Without files that belong to another of them, and without the older steps of a checkpoint."""
    owned = {path.parent / _file_name(name) for form, path in found for name in _companions(form, path, memo)}
    kept = [(form, path) for form, path in found if path not in owned]
    steps = [path for form, path in kept if form.name == "checkpoint"]
    latest = newest(steps)
    return [(form, path) for form, path in kept if form.name != "checkpoint" or path in latest]


def _companion(folder: Path, path: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise SourceError(
            f"{path.name} names a file outside its folder",
            f'the location is "{name}"',
            "Save the model again with its data beside it",
        )
    companion = path.parent / _file_name(name)
    if not companion.is_file():
        raise SourceError(
            f"{path.name} lacks a file that belongs to it",
            f'"{name}" is not in the folder beside it',
            "Copy it there",
        )
    # The model's own folder may be a link that the user made; what is in it stays in it.
    if not any(companion.resolve().is_relative_to(place.resolve()) for place in (folder, path.parent)):
        raise SourceError(
            f"{path.name} has a file that leads out of its folder",
            f'"{name}" is, or lies in, a symbolic link to {companion.resolve()}',
            "Copy the file there",
        )
    return companion


def _file_name(name: str) -> str:
    """A name out of a model or a config as Python spells file names here, where the locale may be C."""
    return os.fsdecode(name.encode())


def _regular_files(folder: Path) -> list[Path]:
    """The files below `folder` that could be a model: hidden ones and deep ones are not."""
    below = (path for level in range(_DEPTH) for path in folder.glob("*/" * level + "*"))
    return sorted(path for path in below if path.is_file() and not _hidden(path.relative_to(folder)))


def _hidden(path: Path) -> bool:
    """Whether some part begins with a dot; a checkpoint's prefix may be empty, and its graph is then called `.meta`."""
    return any(part.startswith(".") for part in path.parent.parts) or (path.name.startswith(".") and path.name != META)


def _listing(folder: Path, paths: list[Path]) -> str:
    if not paths:
        return "no file"
    rows = [f"{path.relative_to(folder).as_posix()} ({appearance(path)})" for path in paths[:_LISTED]]
    return ", ".join(rows) + _more(paths)


def _more(listed: Sequence[object]) -> str:
    return f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
