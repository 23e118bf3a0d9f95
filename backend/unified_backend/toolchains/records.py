"""Whether an environment's files are those that were installed, by what each package's RECORD says of them."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
from pathlib import Path

__all__ = ["problems_of"]


def problems_of(folder: Path, whole: bool) -> list[str]:
    """Files that are not what was installed, a line each.

    Args:
        whole: read them all; else their sizes are looked at.
    """
    python = folder / "bin" / "python"
    gone = [] if os.access(python, os.X_OK) else [f"{python} is not there, or leads nowhere"]
    records = folder.glob("lib/*/site-packages/*.dist-info/RECORD")
    return [*gone, *(problem for record in records for problem in _changed(record, whole))]


def _changed(record: Path, whole: bool) -> list[str]:
    """Files of one package that are not what was installed."""
    packages = record.parent.parent
    problems = []
    with record.open(newline="") as rows:
        for name, digest, size in csv.reader(rows):
            if not digest.startswith("sha256="):
                continue  # RECORD itself, and byte code
            wanted = digest.removeprefix("sha256=")
            path = packages / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != int(size or -1) if not whole else _digest(path) != wanted:
                problems.append(f"{name} is not what was installed")
    return problems


def _digest(path: Path) -> str:
    """SHA-256 as RECORD writes it: URL-safe base64 without padding."""
    with path.open("rb") as file:
        return base64.urlsafe_b64encode(hashlib.file_digest(file, "sha256").digest()).rstrip(b"=").decode()
