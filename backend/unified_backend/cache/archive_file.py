"""The file around an archive's tar stream: written aside, compressed or not, and read no further than is allowed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_backend.errors import CacheError, Refused

__all__ = ["Metered", "broken_is_a_read_error", "reading", "writing"]

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_LEVEL = 3
# For the headers between two members, with long names in them, and the blocks that tarfile reads ahead.
_HEADERS = 4 << 20


class Metered(io.RawIOBase):
    """A stream that gives no more than was allowed: tarfile reads headers into memory as large as they say they are."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = _HEADERS

    def allow(self, size: int) -> None:
        """Let this many more bytes be read, and some headers, in place of what was allowed before."""
        self._left = size + _HEADERS

    def read(self, size: int = -1) -> bytes:
        """The next bytes, fewer than asked for only at the end."""
        data: bytes = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError("a member of a size that no entry has")
        return data


@contextmanager
def writing(path: Path) -> Iterator[Any]:
    """A stream into a file, which appears, or is replaced, when the block ends well.

    Raises:
        Refused: the name ends neither with .tar nor .tar.zst.
        CacheError: the package zstandard is missing.
        OSError: it cannot be written.
    """
    if not path.name.endswith((".tar", ".tar.zst")):
        raise Refused(
            f"{path.name} is not a name for an archive", "it ends neither with .tar nor with .tar.zst", "Name it so"
        )
    zstandard = None if path.name.endswith(".tar") else _zstandard(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("xb") as file:
            if zstandard is None:
                yield file
            else:
                with zstandard.ZstdCompressor(_ZSTD_LEVEL, threads=-1).stream_writer(file, closefd=False) as stream:
                    yield stream
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def reading(path: Path) -> Iterator[Metered]:
    """The tar stream in a file, decompressed if it is compressed, whatever its name.

    Raises:
        Refused: it cannot be read.
        CacheError: the package zstandard is missing.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise Refused(
            f"{path} cannot be read", error.strerror or str(error), "Name an archive that `cache export` wrote"
        ) from None
    with file:
        compressed = file.peek(len(_ZSTD_MAGIC)).startswith(_ZSTD_MAGIC)
        if compressed:
            yield Metered(_zstandard(path).ZstdDecompressor().stream_reader(file, read_across_frames=True))
        else:
            yield Metered(file)


@contextmanager
def broken_is_a_read_error() -> Iterator[None]:
    """Raise `tarfile.ReadError` for all that tarfile and zstandard raise of bytes that are no archive."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError(f"unreadable: {error}") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # the package need not be there
            raise
        raise tarfile.ReadError(f"not a zstd stream: {error}") from None


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise CacheError(
            f"{path} cannot be compressed or decompressed",
            "the package zstandard is not installed",
            "pip install 'triton-unified-backend[fleet]', or use an archive without compression, NAME.tar",
        ) from None
    return zstandard
