"""A model directory made around a model file: the version folder, and a config to begin with."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from unified_backend.batching import batching_by_shapes
from unified_backend.config_template import config_template
from unified_backend.errors import Refused, SourceError, printable
from unified_backend.formats import FORMATS, Source
from unified_backend.formats.description import Description
from unified_backend.formats.integrity import check
from unified_backend.formats.parameters import refuse_unused
from unified_backend.forms.reference import ENGINES
from unified_backend.forms.stated import stated
from unified_backend.server.preflight import check_path, check_repository
from unified_backend.settings import read_settings
from unified_backend.tensors import Signature
from unified_backend.variables import default_max_batch_size

__all__ = ["NewModel", "make_model", "place_of"]

_CONFIG, _VERSION = "config.pbtxt", "1"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LONGEST = 255  # bytes of a file name


@dataclasses.dataclass(frozen=True)
class NewModel:
    """A model directory that was made.

    Attributes:
        files: those of the model, relative to its version folder, with their sizes.
        left: files that were named with the model's folder and do not belong to the model.
        notes: what a user should know before it is loaded.
    """

    folder: Path
    format: str
    files: Mapping[str, int]
    left: Sequence[str]
    notes: Sequence[str]


def place_of(name: str, repository: Path) -> Path:
    """Where a model of this name goes, which is free.

    Raises:
        Refused: the name cannot be a model's, the repository cannot be one, or it has something of that name.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise Refused(
            f'"{name}" cannot be a model\'s name',
            "it is the name of a folder, a part of a URL and a word on the command line of Triton's stub",
            f"Use ASCII letters, digits, `_`, `-` and `.`, a letter or digit first, at most {_LONGEST} of them",
        )
    if repository.exists():
        check_repository(str(repository.absolute()), may_be_empty=True)
    else:
        check_path(repository.absolute(), "model repository")
    folder = repository / name
    if folder.exists() or folder.is_symlink():
        raise Refused(f"{folder} is there already", "nothing was written", "Choose another name, or remove it first")
    return folder


def make_model(folder: Path, found: Source, named: Path, parameters: Mapping[str, str], link: bool) -> NewModel:
    """Make a model's directory, whole or not at all.

    Args:
        folder: of `place_of`; the repository above it is made if it is not there.
        found: the model.
        named: the file or folder that it was found in.
        parameters: set in its config.
        link: hard links in place of copies, where the file system has them.

    Raises:
        Refused: nothing can be written there.
        SourceError: the model would not load.
        ConfigError: a parameter is wrong, or not of the model's format.
    """
    name, root = folder.name, named if named.is_dir() else named.parent
    settings = read_settings(name, parameters, tuple(ENGINES))
    unread = check(found)
    refuse_unused(found.format, settings, found.label)
    description = FORMATS[found.format].describe(found.path, settings, found.label)
    notes = [*description.notes, *unread]
    try:
        description = stated(description, settings, {}, (), name)
    except SourceError as error:
        notes.append(f"it does not load before its config says more: {error}")
        description = _likely(description)
    batching = batching_by_shapes(Signature(description.inputs, description.outputs))
    text = config_template(name, found.format, description, batching, default_max_batch_size(), parameters, notes)
    files = {path.relative_to(root): path for path in found.files}
    _write(folder, text, files, link)
    return NewModel(
        folder,
        found.format,
        {relative.as_posix(): path.stat().st_size for relative, path in files.items()},
        _others(root, found.files) if named.is_dir() else (),
        notes,
    )


def _likely(description: Description) -> Description:
    """With the shapes that the file hints at, for the lines that a user is to correct."""
    inputs = tuple(
        dataclasses.replace(spec, shape=description.likely.get(spec.name, (None, 3, 224, 224)))
        if spec.name in description.unstated
        else spec
        for spec in description.inputs
    )
    return dataclasses.replace(description, inputs=inputs)


def _write(folder: Path, config: str, files: Mapping[Path, Path], link: bool) -> None:
    """
    Raises:
        Refused: a file cannot be read, or the repository cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the repository, and not in it: what lies there is taken for a model.
        with tempfile.TemporaryDirectory(dir=folder.parent.resolve().parent, prefix=".unified-") as aside:
            made = Path(aside) / folder.name
            for relative, path in files.items():
                target = made / _VERSION / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy(path, target, link)
            (made / _CONFIG).write_text(printable(config), "utf-8")
            shutil.move(made, folder)
    except OSError as error:
        raise Refused(
            f"{folder} cannot be written",
            f"{error.filename or folder}: {error.strerror or error}",
            "Make room or correct its permissions, or name another repository with --into",
        ) from None


def _copy(path: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:
            pass  # another file system, or one without links: a copy serves as well
    shutil.copyfile(path, target)


def _others(root: Path, files: Sequence[Path]) -> list[str]:
    """The files beside the model's own that a user may have meant to serve with it: of its folder, and not hidden."""
    own = {path.resolve() for path in files}
    there = (path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path.name for path in there if path.resolve() not in own)
