"""Checks of a model repository: what Triton would hang on, or take for a model by mistake."""

from __future__ import annotations

from pathlib import Path

from unified_backend.doctor.finding import Finding, failed, ok, refused, warning
from unified_backend.errors import Refused
from unified_backend.server.preflight import check_repository

__all__ = ["check_claimed_names", "check_entries", "check_path"]

# Names by which Triton's core chooses a backend itself when config.pbtxt does not.
_CLAIMED = ("model.onnx", "model.pt", "model.plan", "model.savedmodel", "model.graphdef", "model.xml", "model.py")


def check_path(repository: Path) -> Finding:
    """Whether the repository can be served from where it is (a space in its path makes a load hang for ever)."""
    try:
        check_repository(str(repository.absolute()), may_be_empty=False)
    except Refused as error:
        return refused(error)
    return ok(str(repository.absolute()))


def check_entries(repository: Path) -> Finding:
    """Whether every folder in the repository is a model, for Triton takes each for one."""
    folders = sorted(entry for entry in repository.iterdir() if entry.is_dir())
    hidden = [folder.name for folder in folders if folder.name.startswith(".")]
    if hidden:
        return failed(
            f"{', '.join(hidden)}: Triton takes a hidden folder for a model and fails to load it",
            "Move it out of the repository",
        )
    unversioned = [folder.name for folder in folders if not versions(folder)]
    if unversioned:
        return failed(
            f"no version folder in {', '.join(unversioned)}: Triton takes each for a model and fails to load it",
            "Put the model's files into a folder named 1 in it, or move it out of the repository",
        )
    return ok(f"{len(folders)} models, each with a version")


def check_claimed_names(repository: Path) -> Finding:
    """Whether a folder `NAME.unified` without a backend line reaches this backend: its name and its files decide."""
    claimed, dotted = [], []
    for folder in sorted(repository.glob("*.unified")):
        config = folder / "config.pbtxt"
        if config.is_file() and "backend" in config.read_text(errors="replace"):
            continue
        if folder.name.count(".") > 1:
            dotted.append(folder.name)
        claimed += [file for version in versions(folder) for name in _CLAIMED if (file := version / name).exists()]
    if dotted:
        return failed(
            f"{', '.join(dotted)}: Triton takes all that follows the first dot for the backend's name",
            'Leave one dot in the name, or write `backend: "unified"` into config.pbtxt',
        )
    if claimed:
        names = ", ".join(str(file.relative_to(repository)) for file in claimed)
        return warning(
            f"{names}: by this name Triton chooses its own backend, whatever the folder is called",
            'Rename the file, or write `backend: "unified"` into config.pbtxt',
        )
    return ok("none")


def versions(model: Path) -> list[Path]:
    """The version folders of a model."""
    return sorted(entry for entry in model.iterdir() if entry.is_dir() and entry.name.isdecimal())
