"""Writes an ONNX model as every engine takes it, where it is not so already."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.conversion.repair import for_every_engine
from unified_backend.errors import SourceError
from unified_backend.formats.onnx import read_model

if TYPE_CHECKING:
    import onnx

__all__ = ["RECIPE", "normalise", "write_model"]

RECIPE = 1  # part of the canonical model's key: raised when the same source would give other bytes


def normalise(source: Path, companions: Sequence[Path], folder: Path) -> list[str]:
    """Write a repaired copy of the model into `folder` if it needs one.

    Args:
        source: the ONNX file.
        companions: its external data files, which lie beside it or in folders there.
        folder: where `model.onnx` and copies of its companions go.

    Returns:
        what was changed, one phrase each; empty if the source is fit as it is and nothing was written.

    Raises:
        SourceError: the file cannot be parsed, or its data has the name of a file that the copy needs.
    """
    model = read_model(source)
    if changes := for_every_engine(model):
        write_model(model, source, companions, folder)
    return changes


def write_model(model: onnx.ModelProto, source: Path, companions: Sequence[Path], folder: Path) -> None:
    """Write a changed model into `folder` as `model.onnx`, with copies of the external data of the one it was made of.

    Args:
        source: the ONNX file that it was read from.
        companions: the external data files of that one.

    Raises:
        SourceError: its data has the name of a file that the copy needs.
    """
    _refuse_names_taken(source, companions)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for companion in companions:
        copy = folder / companion.relative_to(source.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(companion, copy)


def _refuse_names_taken(source: Path, companions: Sequence[Path]) -> None:
    """The copy lies in a cache entry: data of these names would be written over, or over them."""
    for companion in companions:
        if companion.relative_to(source.parent).as_posix() in ("model.onnx", "manifest.json", "manifest.sig"):
            raise SourceError(
                f"{source.name} has its external data in {companion.name}",
                "a repaired copy of the model needs that name for another file",
                "Export the model again with another name for its data",
            )
