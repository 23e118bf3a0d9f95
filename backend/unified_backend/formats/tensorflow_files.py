"""Which of TensorFlow's messages a file holds, told by its structure: SavedModel, MetaGraphDef or GraphDef.

All three are protobuf messages without a magic number, as ONNX's is, so fields, wire types and the first node decide.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats.wire import LENGTH, VARINT, Bytes, fields, mapped

__all__ = ["Kind", "kind_of"]

_FIELDS = {
    "SavedModel": {1: VARINT, 2: LENGTH},
    "MetaGraphDef": dict.fromkeys(range(1, 8), LENGTH),
    "GraphDef": {1: LENGTH, 2: LENGTH, 3: VARINT, 4: LENGTH, 5: LENGTH},
    "NodeDef": dict.fromkeys(range(1, 8), LENGTH),
}
_LEAST = 8  # bytes
_NAME = re.compile(rb"[ -~]{1,4096}")
_OPERATOR = re.compile(rb"[A-Za-z_][A-Za-z0-9_.>/-]{0,1023}")
# The first word of the text form, after comments.
_TEXT = {
    "SavedModel": re.compile(rb"(saved_model_schema_version\s*:|meta_graphs\s*[:{])"),
    "MetaGraphDef": re.compile(rb"(meta_info_def|graph_def)\s*:?\s*\{"),
    "GraphDef": re.compile(rb"(node\s*:?\s*\{\s*(name|op)\s*:|library\s*:?\s*\{\s*function|versions\s*:?\s*\{)"),
}
_COMMENTS = re.compile(rb"(\s+|#[^\n]*\n)*")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file holds.

    Attributes:
        message: name of the message.
        text: it is in protobuf's text form.
    """

    message: str
    text: bool


def kind_of(path: Path) -> Kind | None:
    """Which message a file holds; None for none of them.

    Raises:
        SourceError: it begins as one and ends too early.
    """
    stat = path.stat()
    return _kind_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(64)
def _kind_of(path: Path, size: int, mtime: int, inode: int) -> Kind | None:
    """Asked once by each of three formats: the arguments beside the path tell one state of the file from another."""
    if size < _LEAST:
        return None
    with mapped(path) as data:
        for message, looks_right in (
            ("SavedModel", _is_saved_model),
            ("MetaGraphDef", _is_meta_graph),
            ("GraphDef", _is_graph),
        ):
            if (end := looks_right(data)) is None:
                continue
            if end > len(data):
                raise SourceError(
                    f"{path.name} is a truncated {message} file",
                    f"its message needs {end} bytes and the file ends after {len(data)}",
                    "Copy it again, completely",
                )
            return Kind(message, text=False)
        head = data[: 64 * 1024]
    start = _COMMENTS.match(head)
    at = start.end() if start else 0
    return next((Kind(message, text=True) for message, begin in _TEXT.items() if begin.match(head, at)), None)


def _is_saved_model(data: Bytes) -> int | None:
    """Where the last field ends, if the fields are those of a SavedModel."""
    end, graphs = 0, 0
    for field, wire_type, begin, end in fields(data):
        if _FIELDS["SavedModel"].get(field) != wire_type:
            return None
        if field == 2:
            graphs += 1
            if graphs == 1 and _is_meta_graph(data, begin, end) is None:
                return None
    return end if graphs else None


def _is_meta_graph(data: Bytes, start: int = 0, stop: int | None = None) -> int | None:
    """Likewise for a MetaGraphDef with a graph; what is cut off is given the benefit of the doubt."""
    end, graphs = 0, 0
    for field, wire_type, begin, end in fields(data, start, stop):
        if _FIELDS["MetaGraphDef"].get(field) != wire_type or (field == 1 and not _is_meta_info(data, begin, end)):
            return None
        if field == 2:
            graphs += 1
            if graphs == 1 and _is_graph(data, begin, end) is None:
                return None
    return end if graphs else None


def _is_meta_info(data: Bytes, start: int, stop: int) -> bool:
    kinds = {1: LENGTH, 2: LENGTH, 3: LENGTH, 4: LENGTH, 5: LENGTH, 6: LENGTH, 7: VARINT, 8: LENGTH}
    return all(kinds.get(field) == wire_type for field, wire_type, _, _ in fields(data, start, stop))


def _is_graph(data: Bytes, start: int = 0, stop: int | None = None) -> int | None:
    """Likewise for a GraphDef, whose first field is a node: its name and operator are text."""
    end, nodes = 0, 0
    for field, wire_type, begin, end in fields(data, start, stop):
        if _FIELDS["GraphDef"].get(field) != wire_type:
            return None
        if not nodes and (field != 1 or not _is_node(data, begin, end)):
            return None
        nodes += 1
    return end if nodes else None


def _is_node(data: Bytes, start: int, stop: int) -> bool:
    texts: dict[int, bytes] = {}
    for field, wire_type, begin, end in fields(data, start, stop):
        if _FIELDS["NodeDef"].get(field) != wire_type:
            return False
        if field in (1, 2):
            texts[field] = data[begin : min(end, begin + 8192)]
    return bool(_NAME.fullmatch(texts.get(1, b"")) and _OPERATOR.fullmatch(texts.get(2, b"")))
