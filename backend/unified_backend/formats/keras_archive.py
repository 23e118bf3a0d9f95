"""Keras 3 archives (`.keras`): a zip of the layers in JSON, and the weights in HDF5."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, telling
from unified_backend.formats.excerpts import excerpt
from unified_backend.formats.hdf5 import read_hdf5
from unified_backend.formats.keras_config import MOST_CONFIG, describe_config, parse_config
from unified_backend.formats.zip_file import DAMAGE, directory_size, trap
from unified_backend.settings import Settings

__all__ = ["KerasArchive", "check_members"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MOST_DIRECTORY = 4 * 2**20  # bytes; Keras writes three members, and a few assets
_MOST_READ, _CHUNK = 512 * 2**20, 2**20  # bytes that are compared with their checksums, a second's worth


class KerasArchive:
    """The `.keras` format: one zip file."""

    name = "keras"

    def detect(self, path: Path) -> bool:
        """Whether the file is a zip that holds a Keras model's two JSON files.

        Raises:
            SourceError: it begins as one and ends too early, or in what is no directory.
        """
        with path.open("rb") as file:
            head = file.read(256)
            if not head.startswith(b"PK\x03\x04"):
                return False
            # Keras writes its JSON files first.
            ours = any(head[30:].startswith(name) for name in (_METADATA.encode(), _CONFIG.encode()))
            size = directory_size(file)
            if size is None and ours:
                raise SourceError(
                    f"{path.name} is a truncated .keras file",
                    "it ends without a zip directory",
                    "Copy it again, completely",
                )
            if size is None or size > _MOST_DIRECTORY:
                return False
            try:
                with zipfile.ZipFile(file) as archive:
                    return {_CONFIG, _METADATA} <= set(archive.namelist())
            except DAMAGE as error:
                if ours:
                    raise _damaged(path, f"its directory is none ({excerpt(error)})") from None
                return False

    def companions(self, path: Path) -> list[str]:
        """None."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What its JSON files say.

        Raises:
            SourceError: it is damaged or a trap, carries code that the settings do not allow, or needs code that is
                not in it.
            ConfigError: a parameter names what the model has not got.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                members = _checked(archive, path)
                config = parse_config(_content(archive, _CONFIG, path), f"{path.name}/{_CONFIG}")
                metadata = parse_config(_content(archive, _METADATA, path), f"{path.name}/{_METADATA}")
        except DAMAGE as error:
            raise _damaged(path, excerpt(error)) from None
        read = _weights(path, members[_WEIGHTS])
        extra = sorted(set(members) - {_CONFIG, _METADATA, _WEIGHTS})
        facts = {"saved": metadata.get("date_saved"), "assets": extra}
        with telling(facts):
            described = describe_config(config, str(metadata.get("keras_version") or ""), read, settings, label)
        return Description(
            described.inputs,
            described.outputs,
            described.inner,
            described.job,
            {**facts, **described.facts},
            described.notes,
        )


def check_members(path: Path) -> tuple[str, ...]:
    """Compare every member with its checksum.

    Returns:
        a line of what is too large to be read.

    Raises:
        SourceError: one is damaged, or a trap.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked(archive, path)
            left = _MOST_READ
            for name in sorted(members, key=lambda name: members[name].file_size):
                left -= members[name].file_size
                if left < 0:
                    return (f"checksums of {name} and what is larger were not compared",)
                _content(archive, name, path, keep=False)
    except DAMAGE as error:
        raise _damaged(path, excerpt(error)) from None
    return ()


def _content(archive: zipfile.ZipFile, name: str, path: Path, keep: bool = True) -> bytes:
    """A member's bytes.

    Args:
        keep: else they are read, and compared with their checksum, only.

    Raises:
        SourceError: it is damaged.
    """
    try:
        with archive.open(name) as member:
            content = member.read() if keep else b""
            while member.read(_CHUNK):
                pass
    except DAMAGE as error:
        raise _damaged(path, f"its member {excerpt(name)} cannot be read ({excerpt(error)})") from None
    return content


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(f"{path.name} is a damaged .keras file", why, "Copy it again, completely, or save it again")


def _checked(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members by name, none of which is a trap.

    Raises:
        SourceError: one leads out of the archive's folder, is absurdly large, or missing.
    """
    members = archive.infolist()
    reason = trap(members, path.stat().st_size, MOST_CONFIG)
    names = {member.filename: member for member in members}
    if reason is None and (missing := [name for name in (_CONFIG, _METADATA, _WEIGHTS) if name not in names]):
        reason = f"it has no {' and no '.join(missing)}"
    if reason is not None:
        raise SourceError(
            f"{path.name} is no .keras file to unpack", reason, "Save the whole model again with model.save(...)"
        )
    return names


def _weights(path: Path, member: zipfile.ZipInfo) -> dict[str, Any]:
    """Shapes of the weights, where they are stored as they are, which is how Keras writes them."""
    if member.compress_type != zipfile.ZIP_STORED:
        return {}
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise _damaged(path, f"its member {_WEIGHTS} is not where it should be")
    name, extra = struct.unpack("<HH", header[26:])
    return read_hdf5(path, (member.header_offset + 30 + name + extra, member.file_size), f"{path.name}/{_WEIGHTS}")
