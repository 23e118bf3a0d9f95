"""Damaged files, told from all else that a framework may not like about a source."""

from __future__ import annotations

import glob
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_backend.errors import DamagedSourceError, UnifiedError
from unified_backend.toolchains.workers.messages import first_line

__all__ = ["damage", "damage_told"]

_DO = "Copy it again completely, or save the model again"
# Of Python's own readers. A format's worker never catches one of these itself.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, json.JSONDecodeError, UnicodeDecodeError)
# What TensorFlow says of a bundle's index; all else that it says of a bundle is of the data.
_OF_THE_INDEX = re.compile(r"\.index|sstable|block|header entry")


@contextmanager
def damage_told(job: Mapping[str, Any]) -> Iterator[None]:
    """
    Raises:
        DamagedSourceError: a file of the source is damaged; anything else is raised as it is.
    """
    try:
        yield
    except UnifiedError:
        raise
    except Exception as error:
        if found := damage(error, job):
            raise found from error
        raise


def damage(error: BaseException, job: Mapping[str, Any]) -> DamagedSourceError | None:
    """The error that names the damaged file, if what a framework raised says that one is."""
    seen: BaseException | None = error
    while seen is not None:
        if _is_damage(seen, job):
            reason = first_line(seen).replace(f"{Path(job['path']).parent}/", "")
            return DamagedSourceError(f"{_file(seen, reason, job)} is damaged", reason, _DO)
        seen = seen.__cause__ or seen.__context__
    return None


def _is_damage(error: BaseException, job: Mapping[str, Any]) -> bool:
    if isinstance(error, _BROKEN) or _of_a_bundle(error):
        return True
    from google.protobuf import message, text_format

    if isinstance(error, (message.DecodeError, text_format.ParseError)):
        return True
    # HDF5's own; those of the system have a number.
    return job["format"].startswith("keras") and isinstance(error, OSError) and error.errno is None


def _of_a_bundle(error: BaseException) -> bool:
    """Of variables: `PREFIX.index` and `PREFIX.data-*`."""
    import tensorflow as tf

    return isinstance(error, (tf.errors.DataLossError, tf.errors.OutOfRangeError))


def _file(error: BaseException, reason: str, job: Mapping[str, Any]) -> str:
    """The damaged file's name, as far as it is known, relative to the source's folder."""
    path = Path(job["path"])
    if not _of_a_bundle(error):
        return path.name
    prefix = job["prefix"] if job["format"] == "checkpoint" else "variables/variables"
    if _OF_THE_INDEX.search(reason):
        return f"{prefix}.index"
    shards = sorted(path.parent.glob(f"{glob.escape(prefix)}.data-*"))
    named = re.search(r"shard (\d+)", reason)
    number = int(named[1]) if named else 0
    if (len(shards) > 1 and not named) or number >= len(shards):
        return f"a file of {prefix}.data-*"
    return shards[number].relative_to(path.parent).as_posix()
