"""A repository for Triton's native backends, written from one for this backend: whole models, in one rename."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unified_backend.ensembles.opening import is_pipeline
from unified_backend.errors import ConfigError, Refused, UnifiedError
from unified_backend.formats.pipeline import read_compiled
from unified_backend.pbtxt import read_pbtxt, to_pbtxt
from unified_backend.processes import Ended, Target, each_apart
from unified_backend.repository import backend_of, completed_by_core, ensemble_steps, is_ours, served_versions, versions
from unified_backend.server.preflight import check_path, model_folders

__all__ = ["REPORT", "Row", "Working", "export_native", "require_free"]

REPORT, _CONFIG = "export.json", "config.pbtxt"
_MODULE = "unified_backend.exports.native_form"


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of a model, or of a version of it.

    Attributes:
        version: None of one that is copied as a whole, or failed as one.
        backend: that serves it in the new repository; of one that failed, that serves it in the old.
        files: name, size, sha256, and the key of the cache's entry, of each file that was verified at load.
        notes: what is otherwise than as it is served here.
        reason: of one that failed, in a sentence.
    """

    model: str
    version: int | None
    status: Literal["exported", "copied", "failed"]
    backend: str
    files: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    reason: str = ""
    seconds: float = 0.0
    log: str = ""


@dataclasses.dataclass(frozen=True)
class Working:
    """A version that is being loaded: the so-and-so-manieth of so many, for so long."""

    label: str
    number: int
    total: int


def require_free(out: Path, repository: Path) -> None:
    """
    Raises:
        Refused: the folder for the new repository is not empty, lies in the old one, cannot be written, or has a path
            at which Triton hangs.
    """
    check_path(out, "new repository")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        why = "it holds files already" if out.is_dir() else "it is a file"
        raise Refused(f"{out} cannot take the repository", why, "Name a folder that is empty or not there yet")
    if out.resolve().is_relative_to(repository.resolve()):
        raise Refused(f"{out} lies in {repository}", "Triton would take it for a model", "Name a folder elsewhere")
    parent = next(path for path in out.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise Refused(f"{out} cannot be written", f"{parent} takes no files", "Name a folder elsewhere")


def export_native(repository: Path, out: Path, chosen: Sequence[str]) -> Iterator[Row | Working]:
    """Write the models of a repository for native backends; what comes of each, and who is being worked on meanwhile.

    Args:
        out: see `require_free`; not made if no model could be exported.
        chosen: names of models, the steps of ensembles among them are taken too; all if there are none.

    Raises:
        Refused: a model that is chosen is not there, or the disk is full.
    """
    folders = _chosen(repository, chosen)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            rows: list[Row] = []
            for step in _written(folders, made):
                if isinstance(step, Row):
                    rows.append(step)
                yield step
            if any(row.status != "failed" for row in rows):
                (made / REPORT).write_text(json.dumps(report(repository, rows), indent=2) + "\n")
                if out.exists():
                    out.rmdir()
                made.rename(out)
    except OSError as error:
        raise Refused(
            f"{out} cannot be written", error.strerror or str(error), "Name a folder that can be, or make room"
        ) from None


def report(repository: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """What `export.json` says."""
    models = [
        {name: value for name, value in dataclasses.asdict(row).items() if name not in ("log", "seconds")}
        for row in sorted(rows, key=lambda row: (row.model, row.version or 0))
    ]
    return {"repository": repository.name, "native": True, "models": models}


def _chosen(repository: Path, chosen: Sequence[str]) -> dict[str, Path]:
    folders = {folder.name: folder for folder in model_folders(repository)}
    wanted = dict.fromkeys(chosen or folders)
    if missing := [name for name in wanted if name not in folders]:
        raise Refused(
            f"{repository} has no model {', '.join(missing)}", f"it has {', '.join(folders)}", "Name one of these"
        )
    waiting = list(wanted) if chosen else []
    while waiting:
        name = waiting.pop()
        steps = _steps(folders[name]) if name in folders else {}
        waiting += [step for step in steps if step not in wanted]
        wanted |= dict.fromkeys(steps)
    return {name: folders[name] for name in sorted(wanted) if name in folders}


def _steps(model_dir: Path) -> Mapping[str, str]:
    """The steps of an ensemble; none of what is no ensemble, or a broken one, which is told of later."""
    try:
        return ensemble_steps(model_dir.name, model_dir) or {}
    except ConfigError:
        return {}


def _written(folders: Mapping[str, Path], made: Path) -> Iterator[Row | Working]:
    """Write each model into `made`: those of this backend first, then other backends', then ensembles of both."""
    ours: dict[str, dict[str, Any]] = {}
    ensembles: list[Path] = []
    for name, folder in folders.items():
        try:
            config = completed_by_core(folder)
            if is_ours(folder, config):
                ours[name] = config
            elif ensemble_steps(name, folder):
                ensembles.append(folder)
            else:
                yield _copied(folder, made, backend_of(folder))
        except ConfigError as error:
            yield Row(name, None, "failed", "not known", reason=str(error))
    targets: list[Target] = []
    for name, config in ours.items():
        step = _pipeline(folders[name], made) if _is_pipeline(folders[name]) else _targets(folders[name], config)
        if isinstance(step, Row):
            yield step
        else:
            targets += step
    yield from _exported(targets, made)
    done: dict[str, Row] = {}
    for folder in ensembles:
        yield from _ensemble(folder, made, done)


def _targets(model_dir: Path, config: Mapping[str, Any]) -> Row | list[Target]:
    found = [Target(model_dir, version) for version in served_versions(model_dir, config)]
    why = "its version policy names none of those there" if versions(model_dir) else "it has no version folder"
    reason = f"{model_dir.name}: there is nothing to export: {why}."
    return found or Row(model_dir.name, None, "failed", "unified", reason=reason)


def _exported(targets: Sequence[Target], made: Path) -> Iterator[Row | Working]:
    """Load each version in a process of its own, which writes its files; then its model's config."""
    configs: dict[str, Mapping[str, Any]] = {}
    # The latest of a model first: it says what the config is.
    targets = sorted(targets, key=lambda target: (target.model_dir.name, -target.version))
    for number, target in enumerate(targets, 1):
        yield Working(target.label, number, len(targets))
        name, folder = target.model_dir.name, made / target.model_dir.name / str(target.version)
        for ended in each_apart([target], 1, _MODULE, lambda _, folder=folder: [str(folder)]):  # type: ignore[misc]
            if not isinstance(ended, Ended):
                yield Working(target.label, number, len(targets))
                continue
            row = _row(ended, configs.get(name))
            if row.status == "failed":
                shutil.rmtree(folder, ignore_errors=True)
            elif ended.result and name not in configs:
                configs[name] = ended.result["config"]
                _write_beside(target.model_dir, folder.parent, configs[name])
            yield row
    for folder in made.iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()


def _row(ended: Ended, latest: Mapping[str, Any] | None) -> Row:
    """What came of a version, held against the config of the model's latest one."""
    name, version = ended.target.model_dir.name, ended.target.version
    timed: dict[str, Any] = {"seconds": ended.seconds, "log": ended.log}
    result = ended.result or {"failure": f"{ended.target.label}: {ended.reason}."}
    if "failure" in result:
        return Row(name, version, "failed", "unified", reason=result["failure"], **timed)
    if latest is not None and latest != result["config"]:
        fields = [
            field for field in sorted({*latest, *result["config"]}) if latest.get(field) != result["config"].get(field)
        ]
        reason = (
            f"{ended.target.label}: the version cannot be exported beside the latest: a native backend has one config "
            f"for all versions, and {', '.join(fields)} would be others. Give it a model directory of its own."
        )
        return Row(name, version, "failed", "unified", reason=reason, **timed)
    return Row(name, version, "exported", result["backend"], result["files"], result["notes"], **timed)


def _write_beside(source: Path, target: Path, config: Mapping[str, Any]) -> None:
    """The config, and what it names in the model's directory: label files, and data of warm-up requests."""
    (target / _CONFIG).write_text(to_pbtxt(config))
    named = {str(row["label_filename"]) for row in config["output"] if row.get("label_filename")}
    for path in (*(source / name for name in sorted(named)), *sorted((source / "warmup").rglob("*"))):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _is_pipeline(model_dir: Path) -> bool:
    return any(is_pipeline(model_dir / str(version)) for version in versions(model_dir))


def _pipeline(model_dir: Path, made: Path) -> Row:
    """A stage of an ensemble, which stays with this backend; a fused pipeline is refused."""
    name = model_dir.name
    try:
        steps = [step for number in versions(model_dir) for step in read_compiled(model_dir / str(number), name).steps]
    except UnifiedError as error:
        return Row(name, None, "failed", "unified", reason=str(error))
    if any(step.kind == "model" for step in steps):
        reason = (
            f"{name}: a fused pipeline cannot be exported: its models run in one process of this backend. "
            "`triton-unified ensemble build` without --fused writes the form that can be."
        )
        return Row(name, None, "failed", "unified", reason=reason)
    note = "a stage, which no native backend runs: install this backend where the repository is served"
    return _copied(model_dir, made, "unified", [note])


def _copied(model_dir: Path, made: Path, backend: str, notes: Sequence[str] = ()) -> Row:
    shutil.copytree(model_dir, made / model_dir.name)
    return Row(model_dir.name, None, "copied", backend, notes=notes)


def _ensemble(model_dir: Path, made: Path, done: dict[str, Row]) -> Iterator[Row]:
    """An ensemble of Triton's, if all of its steps are there and have the tensors that it maps."""
    config = completed_by_core(model_dir)
    name = model_dir.name
    if name in done:
        return
    for step in config["ensemble_scheduling"]["step"]:
        beside = model_dir.parent / str(step["model_name"])
        if _steps(beside) and beside.name not in done and beside != model_dir:
            yield from _ensemble(beside, made, done)
    reason = next(filter(None, (_obstacle(name, step, made) for step in config["ensemble_scheduling"]["step"])), "")
    done[name] = (
        Row(name, None, "failed", "ensemble", reason=reason) if reason else _copied(model_dir, made, "ensemble")
    )
    yield done[name]


def _obstacle(name: str, step: Mapping[str, Any], made: Path) -> str:
    """Why an ensemble cannot work with a step as it is in the new repository, in a sentence; or nothing."""
    member = str(step["model_name"])
    what = f"{name}: the ensemble cannot be exported"
    if not (made / member).is_dir():
        return f"{what}: its step {member} is not in the new repository. See why above."
    config = read_pbtxt(made / member / _CONFIG)
    for side, mapped in (("input", step.get("input_map") or {}), ("output", step.get("output_map") or {})):
        there = {row["name"] for row in config.get(side) or []}
        if there and (gone := [tensor for tensor in mapped if tensor not in there]):
            return (
                f"{what}: its step {member} has no {side} {', '.join(gone)} there, but {', '.join(sorted(there))}. "
                "Have the ensemble take tensors that the network itself gives."
            )
    return ""
