"""Whether the rest of a source is whole, which no description needs: by its own checksums and lengths, and for code.

A load whose conversion is in the cache never asks, for it would read the whole file.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats import Source
from unified_backend.formats.checkpoint import META
from unified_backend.formats.keras_archive import check_members
from unified_backend.formats.table import rows_of
from unified_backend.formats.torch_code import refuse_code as refuse_code_in_archive
from unified_backend.formats.wire import VARINT, fields, varint

__all__ = ["check", "refuse_code"]

_TORCH = ("torchscript", "torch-export")
_INDEX = ".index"
_MOST_INDEX = 64 * 2**20  # bytes; one of 100,000 variables has 10 MB
_SHARDS, _SHARD, _OFFSET, _SIZE = 1, 3, 4, 5  # fields of BundleHeaderProto and BundleEntryProto


def check(source: Source) -> tuple[str, ...]:
    """Read what has checksums, and compare the lengths of weights with what is there.

    Returns:
        a line each of what was too large to be read.

    Raises:
        SourceError: a file is damaged, or holds code that is not the model's.
    """
    refuse_code(source)
    if source.format == "keras":
        return check_members(source.path)
    if source.format == "savedmodel":
        _check_weights(source, source.path.parent / "variables" / f"variables{_INDEX}")
    if source.format == "checkpoint":
        _check_weights(source, source.path.with_name(source.path.name.removesuffix(META) + _INDEX))
    return ()


def refuse_code(source: Source) -> None:
    """Look for code in places where the source framework would run it.

    Raises:
        SourceError: there is some.
    """
    if source.format in _TORCH:
        refuse_code_in_archive(source.path)


def _check_weights(source: Source, index: Path) -> None:
    if index not in source.files:
        return
    name = index.relative_to(source.path.parent).as_posix()
    try:
        if index.stat().st_size > _MOST_INDEX:
            raise ValueError("it is larger than any model's")
        ends = _ends(index.read_bytes())
    except ValueError as error:
        raise SourceError(f"{source.label}: {name} is damaged", str(error), "Copy it again, completely") from None
    for number, end in ends.items():
        shard = index.with_name(f"{index.name.removesuffix(_INDEX)}.{number}")
        if shard.is_file() and shard.stat().st_size < end:
            raise SourceError(
                f"{source.label}: {shard.relative_to(source.path.parent).as_posix()} is cut short",
                f"{name} places weights up to byte {end} in it, and it ends after {shard.stat().st_size}",
                "Copy it again, completely",
            )


def _ends(index: bytes) -> dict[str, int]:
    """Suffix of each file of weights -> where the last of them ends."""
    count = 1
    ends: dict[int, int] = defaultdict(int)
    for key, value in rows_of(index):
        numbers = {
            field: varint(value, begin)[0] for field, wire_type, begin, _ in fields(value) if wire_type == VARINT
        }
        if not key:
            count = numbers.get(_SHARDS, 1)
        else:
            shard = numbers.get(_SHARD, 0)
            ends[shard] = max(ends[shard], numbers.get(_OFFSET, 0) + numbers.get(_SIZE, 0))
    return {f"data-{shard:05}-of-{count:05}": end for shard, end in ends.items()}
