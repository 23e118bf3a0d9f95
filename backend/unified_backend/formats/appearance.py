"""What a file that is not a model looks like, in words for a message."""

from __future__ import annotations

import re
from pathlib import Path

from unified_backend.formats import dali, elsewhere, torch_pickle
from unified_backend.formats.mxnet_params import MAGIC

__all__ = ["appearance"]

# First bytes of files that people leave in version folders, at the offsets their formats' specifications give.
_SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (0, b"/annex/objects/", "a git-annex pointer: run `git annex get`"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5 without a Keras model's layers, weights alone perhaps: save with model.save(...)"),
    (0, b"PK\x03\x04", "a zip archive, but no model of Keras's or PyTorch's"),
    (0, MAGIC, "parameters of MXNet; their graph, NAME-symbol.json, is missing"),
    (0, b"\x1f\x8b", "gzip: unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "zstd: unpack it"),
    (257, b"ustar", "a tar archive: unpack it"),
    (0, b"\x93NUMPY", "a NumPy array"),
)
_SHARD = re.compile(r"\.data-\d{5}-of-\d{5}$")
_TABLE_END = bytes.fromhex("57fb808b247547db")  # of the table that TensorFlow keeps a checkpoint's index in
_CHECKPOINT = "of a TensorFlow checkpoint; its graph, the .meta file of the same name, is missing or no graph"


def appearance(path: Path) -> str:
    """A few words on what `path` looks like, from its size and first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(max(0, path.stat().st_size - len(_TABLE_END)))
            tail = file.read()
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not head:
        return "empty"
    if found := torch_pickle.words(path):
        return found
    for offset, signature, words in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return words
    if tail == _TABLE_END:
        return f"the index {_CHECKPOINT}"
    if _SHARD.search(path.name):
        return f"weights {_CHECKPOINT}"
    if found := elsewhere.words(path) or dali.words(path):
        return found
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page: the download failed perhaps"
    if start.startswith(b"<?xml"):
        return "XML, an OpenVINO model perhaps"
    if _is_text(head):
        return "text"
    return f"unknown, {path.stat().st_size} bytes"


def _is_text(head: bytes) -> bool:
    try:
        return head[:-4].decode().isprintable() or b"\n" in head
    except UnicodeDecodeError:
        return False
