"""PyTorch's zip archives: which kind one is, and its members, read without PyTorch."""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats.zip_file import DAMAGE, directory_size, trap

__all__ = ["TorchArchive", "kind_of", "opened"]

_MOST_DIRECTORY = 64 * 2**20
_MOST_MEMBER = 64 * 2**20  # bytes of code, JSON or a pickle; weights are not read here


class TorchArchive:
    """An open archive, whose members lie in one folder called after the file that was saved."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive = archive
        self._name = name
        self._members = {member.filename: member for member in archive.infolist()}
        self.root = _root(list(self._members))

    @property
    def names(self) -> list[str]:
        """Names of the members inside that folder."""
        return [name.removeprefix(self.root) for name in self._members if name.startswith(self.root)]

    def has(self, name: str) -> bool:
        """Whether there is a member of this name inside the folder."""
        return self.root + name in self._members

    def head(self, name: str) -> bytes:
        """The first four bytes of a member."""
        with self._archive.open(self.root + name) as member:
            return member.read(4)

    def read(self, name: str) -> bytes:
        """The bytes of a member that is not weights.

        Raises:
            SourceError: it is not there, is absurdly large or damaged.
        """
        member = self._members.get(self.root + name)
        if member is None or member.file_size > _MOST_MEMBER:
            why = "it is missing" if member is None else f"it would unpack to {member.file_size} bytes"
            raise SourceError(f"{self._name}: {name} cannot be read", why, "Save the model again")
        return self._archive.read(member)


@contextmanager
def opened(path: Path) -> Iterator[TorchArchive]:
    """Open an archive that `kind_of` knows.

    Raises:
        SourceError: it is damaged, or a trap; so is what is read of it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if reason := trap(archive.infolist(), path.stat().st_size, _MOST_MEMBER):
                raise SourceError(f"{path.name} is no archive to unpack", reason, "Save the model again")
            yield TorchArchive(archive, path.name)
    except DAMAGE as error:
        raise SourceError(
            f"{path.name} is a damaged PyTorch archive", str(error) or type(error).__name__, "Copy or save it again"
        ) from None


def kind_of(path: Path) -> str | None:
    """`torchscript`, `torch-export`, `aotinductor` or `pickle`; None for what PyTorch did not save.

    Raises:
        SourceError: it begins as one of PyTorch's archives and ends too early.
    """
    stat = path.stat()
    return _kind_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(64)
def _kind_of(path: Path, length: int, mtime: int, inode: int) -> str | None:
    """Asked once by each of several formats: the arguments beside the path tell one state of the file from another."""
    with path.open("rb") as file:
        head = file.read(256)
        if not head.startswith(b"PK\x03\x04"):
            return None
        size = directory_size(file)
        if size is None and any(word in head[30:] for word in (b"/data.pkl", b"/data/0", b"/models/", b"/archive_")):
            raise SourceError(
                f"{path.name} is a truncated PyTorch archive",
                "it ends without a zip directory",
                "Copy it again, completely",
            )
        if size is None or size > _MOST_DIRECTORY:
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except (*DAMAGE, zlib.error):
            return None
    root = _root(names)
    inside = [name.removeprefix(root) for name in names]
    if any(name.startswith("data/aotinductor/") for name in inside):
        return "aotinductor"
    if "serialized_exported_program.json" in names or any(
        name.startswith("models/") and name.endswith(".json") for name in inside
    ):
        return "torch-export"
    if "data.pkl" not in inside:
        return None
    return "torchscript" if "constants.pkl" in inside and any(n.startswith("code/") for n in inside) else "pickle"


def _root(names: list[str]) -> str:
    """`NAME/`, the folder that every member lies in; empty where there is none."""
    folders = {name.partition("/")[0] for name in names if "/" in name}
    return f"{folders.pop()}/" if len(folders) == 1 and all("/" in name for name in names) else ""
