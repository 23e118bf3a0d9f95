"""Model directories put into a repository, all of them or none, without taking one from under another pipeline."""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from unified_backend.ensembles.definition import Definition
from unified_backend.errors import ConfigError, Refused
from unified_backend.pbtxt import read_pbtxt

__all__ = ["placed"]

_CONFIG = "config.pbtxt"


def placed(write: Callable[[Path], None], definition: Definition, repository: Path, replace: bool) -> list[Path]:
    """Write model directories aside, and move them into the repository when all are there.

    Args:
        write: writes those of a pipeline into a folder.
        replace: take the place of what is there under their names.

    Returns:
        those that were not there already as they are.

    Raises:
        Refused: there is something of one of the names, or another pipeline uses it and would get another model.
    """
    repository.mkdir(parents=True, exist_ok=True)
    # Beside the repository, and not in it: what lies there is taken for a model.
    with tempfile.TemporaryDirectory(dir=repository.resolve().parent, prefix=".unified-") as aside:
        write(Path(aside))
        names = sorted(path.name for path in Path(aside).iterdir())
        # A model that another pipeline brought likewise is shared.
        names = [name for name in names if not _equal(Path(aside) / name, repository / name)]
        there = [name for name in names if (repository / name).exists()]
        for name in there:
            _require_unshared(Path(aside) / name, repository / name, definition)
        if there and not replace:
            raise Refused(
                f"{repository} has {', '.join(there)} already",
                "nothing was written",
                "Give --replace, or name another repository",
            )
        for name in names:
            if name in there:
                shutil.rmtree(repository / name)
            shutil.move(Path(aside) / name, repository / name)
    return [repository / name for name in names]


def _require_unshared(new: Path, old: Path, definition: Definition) -> None:
    """
    Raises:
        Refused: another pipeline of the repository uses the model, and would get another, or one for smaller batches.
    """
    users = [name for name in _ensembles_with(old) if name != definition.name]
    if not users:
        return
    configs = [read_pbtxt(model / _CONFIG) for model in (old, new)]
    before, after = (int(config.pop("max_batch_size", 0)) for config in configs)
    if configs[0] == configs[1] and _equal(new, old, but=_CONFIG):
        if after >= before:
            return
        why = f"its max_batch_size is {before}, and would be {after}"
    else:
        why = "its files or its config would be others"
    raise Refused(
        f"the pipeline {' and '.join(users)} uses {old.name} too",
        why,
        f"Name the model otherwise in {definition.marks.path.name}, or remove {' and '.join(users)} first",
    )


def _ensembles_with(model: Path) -> list[str]:
    """The ensembles beside a model that it is a step of."""
    found = []
    for path in sorted(model.parent.glob(f"*/{_CONFIG}")):
        try:
            steps = read_pbtxt(path).get("ensemble_scheduling", {}).get("step", [])
        except ConfigError:
            continue  # Triton will not load that one either
        if model.name in (step.get("model_name") for step in steps):
            found.append(path.parent.name)
    return found


def _equal(one: Path, other: Path, but: str = "") -> bool:
    """Whether two folders have the same files; that of the name `but` may differ."""
    files = _files(one)
    return files == _files(other) and all(
        name == Path(but) or filecmp.cmp(one / name, other / name, shallow=False) for name in files
    )


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
