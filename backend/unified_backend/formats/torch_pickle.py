"""Files of weights and pickled objects, told apart without running anything, and what to do with each in a sentence."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats.pickles import imports
from unified_backend.formats.torch_archive import kind_of, opened

__all__ = ["words"]

_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.save until PyTorch 1.6
_MOST_PICKLE = 64 * 2**20
_EXPORT = "export the model where its class is: torch.export.save(torch.export.export(model.eval(), (x,)), 'model.pt2')"
# What a state_dict is made of; a module's pickle names its class.
_OF_TENSORS = (
    "torch._utils",
    "torch",
    "collections",
    "torch._tensor",
    "torch.nn.parameter",
    "numpy",
    "numpy.core.multiarray",
)
_KINDS = {
    "sklearn": "a pickled scikit-learn model: save it with skops, or convert it with skl2onnx where it was trained",
    "xgboost": "a pickled XGBoost model: save it with model.save_model('model.ubj')",
    "lightgbm": "a pickled LightGBM model: save it with booster.save_model('model.txt')",
    "joblib": "a pickle of joblib's: save the model in a format without code",
}


def words(path: Path) -> str | None:
    """A few words on a pickle, a file of weights, or an archive of either; None for anything else."""
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(_LEGACY):
            return f"a pickle of PyTorch's before 1.6, weights without a graph: {_EXPORT}"
        if _is_safetensors(head, path.stat().st_size):
            return f"safetensors, weights without a graph: {_EXPORT}"
        if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
            return _of_pickle(head + file.read(_MOST_PICKLE))
    try:
        if kind_of(path) != "pickle":
            return None
        with opened(path) as archive:
            named = imports(archive.read("data.pkl"))
    except (SourceError, ValueError, zipfile.BadZipFile):
        return None
    classes = [each.replace(" ", ".") for each in named if each.rpartition(" ")[0] not in _OF_TENSORS]
    if classes:
        return f"a pickled PyTorch module ({classes[0]}), whose code is not in it; it is never loaded: {_EXPORT}"
    return f"a PyTorch state_dict, weights without a graph: {_EXPORT}"


def _of_pickle(data: bytes) -> str:
    try:
        named = imports(data)
    except ValueError:
        named = []
    packages = [each.partition(".")[0].partition(" ")[0] for each in named]
    found = next((_KINDS[package] for package in packages if package in _KINDS), "a Python pickle")
    return f"{found}; it is never loaded"


def _is_safetensors(head: bytes, size: int) -> bool:
    """The length of a JSON header, and its start."""
    return len(head) > 9 and head[8:10] in (b'{"', b"{ ") and 2 <= struct.unpack("<Q", head[:8])[0] < size
