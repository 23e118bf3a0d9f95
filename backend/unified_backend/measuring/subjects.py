"""What is measured: a model, each model of a repository, or a pipeline with its members."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unified_backend.cache import Cache
from unified_backend.ensembles.definition import read_definition
from unified_backend.ensembles.members import wired
from unified_backend.ensembles.writing import write_ensemble, write_fused
from unified_backend.errors import Refused, UnifiedError
from unified_backend.formats.pipeline import FILE, CompiledStep, read_compiled
from unified_backend.pbtxt import gives_max_batch_size
from unified_backend.repository import completed_by_core, ensemble_steps, our_config, version_folder
from unified_backend.server.preflight import model_folders

__all__ = ["FORMS", "ServedModel", "Subject", "subjects_of"]

Kind = Literal["model", "repository", "pipeline"]

FORMS = ("ensemble", "fused")


@dataclass(frozen=True)
class ServedModel:
    """A model's directory as it is to be served.

    Attributes:
        folder: of the version.
        config: as it is written, in Triton's JSON form.
        content: the one folder to put into the version, where it has no version folder of its own.
        beside: what lies beside the versions: samples, calibration data.
        members: of a fused pipeline: the models inside it.
        is_stage: a pipeline of stages alone, which no engine runs.
        ours: this backend serves it.
        steps: of a fused pipeline: their names, in their order.
    """

    name: str
    version: int
    folder: Path
    config: Mapping[str, Any]
    max_batch_size_given: bool = False
    content: Path | None = None
    beside: Sequence[Path] = ()
    members: Sequence[ServedModel] = ()
    is_stage: bool = False
    ours: bool = True
    steps: Sequence[str] = ()


@dataclass(frozen=True)
class Subject:
    """What requests go to, and all that has to be loaded for it.

    Attributes:
        name: of the model that requests go to; the first of `models`.
        form: what distinguishes it in a list of several: of a pipeline's two forms, of a repository's models.
        problem: why it cannot be served, where that is known already; it has no models then.
    """

    name: str
    kind: Kind
    models: Sequence[ServedModel]
    form: str = ""
    problem: str = ""

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the model that requests go to."""
        return self.models[0].config if self.models else {}

    @property
    def samples(self) -> list[Path]:
        """The `.npz` files in the folder `samples` beside the versions."""
        beside = [path for path in self.models[0].beside if path.name == "samples"]
        return sorted(file for path in beside for file in path.glob("*.npz"))


def subjects_of(path: Path, folder: Path, cache: Cache, forms: Sequence[str] = FORMS) -> tuple[Kind, list[Subject]]:
    """What a path names, and the subjects in it.

    Args:
        path: a model file or folder, a model's directory, a repository, or a pipeline's YAML file.
        folder: an empty one, for what a YAML file is built into.
        forms: of a YAML file: those to build.

    Raises:
        Refused: there is no such thing, or nothing of this backend in it.
        UnifiedError: a config or a pipeline is wrong.
    """
    path = path.absolute()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return "pipeline", list(_built(path, folder, cache, forms))
    if path.is_dir() and ((path / "config.pbtxt").is_file() or _has_versions(path)):
        subject = _of_directory(path)
        return subject.kind, [subject]
    folders = model_folders(path) if path.is_dir() else []
    if folders:
        return "repository", _of_repository(path, folders)
    return "model", [Subject(name := _name(path), "model", [_of_file(path, name)])]


def _has_versions(path: Path) -> bool:
    return any(child.is_dir() and child.name.isdecimal() for child in path.iterdir())


def _of_repository(path: Path, folders: Sequence[Path]) -> list[Subject]:
    """Its models of this backend; one whose config is wrong is told, and stops no other."""
    found = []
    for child in folders:
        try:
            if completed_by_core(child).get("backend") == "unified":
                found.append(dataclasses.replace(_of_directory(child), form=child.name))
        except UnifiedError as error:
            found.append(Subject(child.name, "model", [], child.name, f"{error.what}: {error.why}"))
    if not found:
        raise Refused(
            f"{path} has no model of this backend",
            f"it has {', '.join(child.name for child in folders)}",
            'Name one with `backend: "unified"`',
        )
    return [one for one in found if not any(model.is_stage for model in one.models[:1])]


def _of_directory(path: Path) -> Subject:
    label, _ = version_folder(path, None)
    steps = ensemble_steps(label, path)
    if steps is None:
        model = served_model(path)
        return Subject(path.name, "pipeline" if model.members else "model", [model])
    found = [served_model(path)]
    waiting = list(steps)
    while waiting:
        name = waiting.pop(0)
        if name in (model.name for model in found):
            continue
        found.append(served_model(path.parent / name))
        waiting += ensemble_steps(name, path.parent / name) or {}
    return Subject(path.name, "pipeline", found)


def served_model(path: Path) -> ServedModel:
    """A model's directory; of several versions, the one that is served."""
    config = completed_by_core(path)
    specific = (config.get("version_policy") or {}).get("specific", {}).get("versions")
    label, folder = version_folder(path, max(map(int, specific)) if specific else None)
    ours = config.get("backend") in ("unified", "python") and config.get("platform") != "ensemble"
    nobodys = not config.get("backend") and not config.get("platform")
    if nobodys or (ours and config.get("backend") == "unified"):
        config = our_config(label, path)
    ours = ours and config.get("backend") == "unified"
    members: list[ServedModel] = []
    steps: Sequence[CompiledStep] = ()
    is_stage = False
    if ours and (folder / FILE).is_file():
        steps = read_compiled(folder, label).steps
        kinds = {step.path: step.kind for step in steps}
        members = [served_model(folder / place) for place, kind in kinds.items() if kind == "model"]
        is_stage = not members
    beside = [child.resolve() for child in sorted(path.iterdir()) if not _is_ours_to_write(child)]
    given = gives_max_batch_size(path / "config.pbtxt")
    names = [step.name for step in steps]
    return ServedModel(
        path.name, int(folder.name), folder.resolve(), config, given, None, beside, members, is_stage, ours, names
    )


def _is_ours_to_write(child: Path) -> bool:
    return child.name == "config.pbtxt" or (child.is_dir() and child.name.isdecimal()) or child.name.startswith(".")


def _of_file(path: Path, name: str) -> ServedModel:
    """A model file in its folder, or a folder that is a model."""
    config: dict[str, Any] = {"backend": "unified"}
    if path.is_dir():
        return ServedModel(name, 1, path, config, content=path.resolve())
    config["parameters"] = {"source": {"string_value": path.name}}
    beside = [child.resolve() for child in (path.parent / "samples", path.parent / "calibration") if child.is_dir()]
    return ServedModel(name, 1, path.parent.resolve(), config, beside=beside)


def _name(path: Path) -> str:
    """A model's name out of a file's: letters, digits, `_` and `-`, because a dot would name a backend."""
    if not path.exists():
        raise Refused(
            f"{path} is not there", "there is no such file or folder", "Name a model, a repository or a pipeline"
        )
    return re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem if path.is_file() else path.name).strip("_") or "model"


def _built(path: Path, folder: Path, cache: Cache, forms: Sequence[str]) -> Iterator[Subject]:
    """A pipeline's definition, built in each form."""
    definition = read_definition(path)
    beside = [child for child in [path.parent / "samples"] if child.is_dir()]
    for form in forms:
        repository = folder / form
        repository.mkdir(parents=True)
        write = write_fused if form == "fused" else write_ensemble
        try:
            write(wired(definition, repository, cache), repository, replace=False)
        except UnifiedError as error:
            yield Subject(definition.name, "pipeline", [], form, f"{error.what}: {error.why}")
            continue
        for child in beside:
            (repository / definition.name / "samples").symlink_to(child.resolve())
        one = _of_directory(repository / definition.name)
        yield dataclasses.replace(one, form=form)
