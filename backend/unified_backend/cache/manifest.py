"""An entry's manifest: its key in clear, the size and SHA-256 of each of its files, who made it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from unified_backend.cache.files import sha256_of
from unified_backend.cache.keys import SCHEMA, Key

__all__ = [
    "MANIFEST",
    "SIGNATURE",
    "DamagedError",
    "FileRecord",
    "Manifest",
    "UntrustedError",
    "artefacts",
    "damage",
    "path_in",
    "record_files",
]

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
_KIND = re.compile(r"[A-Za-z0-9_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 255  # bytes, of a file in every filesystem in use


class DamagedError(Exception):
    """An entry is not what was published; the message says how."""


class UntrustedError(DamagedError):
    """An entry may be what was published, and is not signed by the key that this host wants."""


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """One file of an entry: bytes, and SHA-256 in hex."""

    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an entry says of itself.

    Attributes:
        key: what it was made from.
        facts: what its maker handed back (JSON values).
        files: path inside the entry (POSIX, relative) -> size and digest.
        made: by whom, when and how long it took, for people: `model`, `host`, `unix_time`, `seconds`.
    """

    key: Key
    facts: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    made: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of its files together."""
        return sum(record.size for record in self.files.values())

    def to_bytes(self) -> bytes:
        """The manifest as it is stored, and signed: its last field is the SHA-256 of the text without that field."""
        value = {
            "schema": SCHEMA,
            "kind": self.key.kind,
            "key": dict(self.key.fields),
            "facts": dict(self.facts),
            "files": {name: dataclasses.asdict(record) for name, record in self.files.items()},
            "made": dict(self.made),
        }
        return _text({**value, "sha256": hashlib.sha256(_text(value)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, digest: str) -> Manifest:
        """Read a manifest, of this disk or from elsewhere; nothing in it is trusted.

        Args:
            digest: the key that it is filed under, which its fields must give: a manifest of another key, however
                well signed, is damage.

        Raises:
            DamagedError: it does not parse, is of another schema or key, or names a file outside its folder.
        """
        try:
            value = json.loads(data)
            if value["schema"] != SCHEMA:
                raise DamagedError(f"manifest of schema {value['schema']}, not {SCHEMA}")
            files = {
                str(name): FileRecord(int(record["size"]), str(record["sha256"]))
                for name, record in value["files"].items()
            }
            manifest = cls(
                Key(str(value["kind"]), dict(value["key"])), dict(value["facts"]), files, dict(value["made"])
            )
            found = manifest.key.digest
            written = manifest.to_bytes()
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedError(f"unreadable manifest: {type(error).__name__}: {error}") from None
        # The kind is part of paths; it may come from an archive or a store that others write to.
        if not _KIND.fullmatch(manifest.key.kind):
            raise DamagedError(f"manifest of a kind that cannot be, {manifest.key.kind[:40]!r}")
        if found != digest:
            raise DamagedError(f"manifest of another key, {found[:12]}")
        # Facts are used as they are, so a flipped bit in them would be a wrong answer as one in a file would.
        if written != data:
            raise DamagedError("manifest has the wrong SHA-256")
        if bad := next((name for name in files if not _stays_inside(name)), None):
            raise DamagedError(f"manifest names {bad!r}, which is not a file of the entry")
        if bad := next((name for name in files if not _could_be(name, files)), None):
            raise DamagedError(f"manifest says of {bad!r} what no file can be")
        return manifest


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and digest of every artefact in `folder`."""
    return {name: FileRecord(path.stat().st_size, sha256_of(path)) for name, path in artefacts(folder).items()}


def path_in(folder: Path, name: str) -> Path:
    """Where the file that a manifest calls `name` lies below a folder, in every locale: Triton's stub has C.

    Raises:
        ValueError: no file can have the name.
    """
    return folder / os.fsdecode(_encoded(name))


def artefacts(folder: Path) -> dict[str, Path]:
    """The files below `folder` that are neither manifest nor signature, by their relative name.

    A name's bytes on the disk are UTF-8, and surrogates stand for those that are not; see `path_in`.
    """
    below = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    found = {os.fsencode(path.relative_to(folder)).decode("utf-8", "surrogateescape"): path for path in below}
    return {name: path for name, path in found.items() if name not in (MANIFEST, SIGNATURE)}


def damage(folder: Path, manifest: Manifest, digest: Callable[[Path], str]) -> str | None:
    """How the files in `folder` differ from the manifest, or None.

    Args:
        digest: SHA-256 of a file's bytes, in hex.
    """
    present = artefacts(folder)
    if present.keys() != manifest.files.keys():
        return f"files differ from the manifest: {', '.join(sorted(present.keys() ^ manifest.files.keys()))}"
    for name, path in present.items():
        if path.is_symlink() or not path.is_file():
            return f"{name} is not a regular file"
        if path.stat().st_size != manifest.files[name].size:
            return f"{name} has the wrong size"
        if digest(path) != manifest.files[name].sha256:
            return f"{name} has the wrong SHA-256"
    return None


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


def _stays_inside(name: str) -> bool:
    """Whether a file name from a manifest is a plain relative path below its folder."""
    path = PurePosixPath(name)
    return (
        bool(name)
        and not path.is_absolute()
        and path.as_posix() == name
        and not {"..", "."} & set(path.parts)
        and "\0" not in name
        and path.parts[0] not in (MANIFEST, SIGNATURE)
    )


def _could_be(name: str, files: Mapping[str, FileRecord]) -> bool:
    """Whether the record can be of a file, and no other file stands where its folder has to be.

    The digest is part of paths, here and in a remote tier.
    """
    record, path = files[name], PurePosixPath(name)
    try:
        longest = max(len(_encoded(part)) for part in path.parts)
    except UnicodeEncodeError:
        return False
    return (
        longest <= _LONGEST_NAME
        and record.size >= 0
        and _SHA256.fullmatch(record.sha256) is not None
        and not any(parent.as_posix() in files for parent in path.parents)
    )
