"""A model's folder in a local repository, read as Triton's core reads it: versions, config, whose backend it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import ConfigError, Refused
from unified_backend.pbtxt import read_pbtxt
from unified_backend.tensorrt_options import accelerator_parameters

__all__ = [
    "backend_of",
    "chosen_filename",
    "completed_by_core",
    "ensemble_steps",
    "is_ours",
    "our_config",
    "parameters",
    "parameters_of",
    "served_versions",
    "version_folder",
    "versions",
]

_PACKAGE = b"unified_backend"  # what this package's model.py, and no other one, imports


def versions(model_dir: Path) -> list[int]:
    """The versions in a model's folder, ascending."""
    return sorted(int(child.name) for child in model_dir.iterdir() if child.is_dir() and child.name.isdecimal())


def served_versions(model_dir: Path, config: Mapping[str, Any]) -> list[int]:
    """The versions of a model that its version policy has served, ascending; by default the latest alone."""
    there, policy = versions(model_dir), config.get("version_policy") or {}
    if "all" in policy:
        return there
    if "specific" in policy:
        wanted = {int(number) for number in policy["specific"].get("versions") or []}
        return [number for number in there if number in wanted]
    return there[-int((policy.get("latest") or {}).get("num_versions") or 1) :]


def version_folder(model_dir: Path, wanted: int | None) -> tuple[str, Path]:
    """The label (`model/version`) and folder of a version; the highest if none is wanted.

    Raises:
        Refused: there is no such folder or version.
    """
    if not model_dir.is_dir():
        raise Refused(
            f"{model_dir} is not a model directory", "there is no such folder", "Name a folder of a repository"
        )
    there = versions(model_dir)
    if not there:
        raise Refused(
            f"{model_dir} has no version folder",
            "a model directory holds its versions in folders named by number",
            f"Make {model_dir.name}/1/ and put the model file inside",
        )
    if wanted is not None and wanted not in there:
        listed = ", ".join(map(str, there))
        raise Refused(f"{model_dir} has no version {wanted}", f"it has {listed}", "Choose one of these")
    version = there[-1] if wanted is None else wanted
    return f"{model_dir.name}/{version}", model_dir / str(version)


def our_config(label: str, model_dir: Path) -> dict[str, Any]:
    """The config of a model of this backend, as Triton would hand it over.

    Raises:
        ConfigError: it does not parse, or is not a config for this backend and this folder.
    """
    config = completed_by_core(model_dir)
    if config["name"] != model_dir.name:
        raise ConfigError(
            f'{label}: config.pbtxt has name "{config["name"]}"',
            "Triton wants the folder's name there",
            f'Write `name: "{model_dir.name}"`, or leave the line out',
        )
    if is_ours(model_dir, config):
        return config
    for field in ("backend", "platform"):
        if config.get(field):
            raise ConfigError(
                f'{label}: config.pbtxt has {field} "{config[field]}"',
                "the model belongs to another backend, and what that one makes of it is not known here",
                'Name a model of `backend: "unified"`',
            )
    raise ConfigError(
        f"{label}: config.pbtxt names no backend",
        "another backend would get this model",
        'Write `backend: "unified"`, or name the folder NAME.unified, with no other dot',
    )


def is_ours(model_dir: Path, config: Mapping[str, Any]) -> bool:
    """Whether this backend gets a model: named so, or by this package's model.py under Triton's Python backend."""
    if config.get("backend") != "python":
        return config.get("backend") == "unified"
    programs = (model_dir / str(version) / "model.py" for version in versions(model_dir))
    return any(path.is_file() and _PACKAGE in path.read_bytes() for path in programs)


def ensemble_steps(label: str, model_dir: Path) -> dict[str, str] | None:
    """The models of a Triton ensemble and their backends; None if it is none.

    Raises:
        ConfigError: config.pbtxt does not parse, or a model is not beside the ensemble or has no version.
    """
    config = completed_by_core(model_dir)
    if config.get("platform") != "ensemble" and "ensemble_scheduling" not in config:
        return None
    names = [str(step.get("model_name")) for step in config.get("ensemble_scheduling", {}).get("step", [])]
    if not names:
        raise ConfigError(
            f"{label}: the ensemble has no step", "ensemble_scheduling in its config.pbtxt is empty", "Write its steps"
        )
    for name in names:
        path = model_dir.parent / name
        if not path.is_dir() or not versions(path):
            raise ConfigError(
                f"{label}: the ensemble's model {name} cannot be used",
                "it has no version folder" if path.is_dir() else "there is no such model beside it",
                "Put it there, or correct ensemble_scheduling in config.pbtxt",
            )
    return {name: backend_of(model_dir.parent / name) for name in names}


def completed_by_core(model_dir: Path) -> dict[str, Any]:
    """config.pbtxt with what Triton's core adds by itself: the name, and `unified` out of a folder's NAME.unified.

    Raises:
        ConfigError: it does not parse.
    """
    config = read_pbtxt(model_dir / "config.pbtxt")
    config.setdefault("name", model_dir.name)
    if "backend" not in config and model_dir.name.partition(".")[2] == "unified":
        config["backend"] = "unified"  # as Triton's core does with what follows the first dot
    return config


def backend_of(model_dir: Path) -> str:
    """Which backend gets a model, in words for a person where the config leaves it open.

    Raises:
        ConfigError: config.pbtxt does not parse.
    """
    config = completed_by_core(model_dir)
    return str(config.get("backend") or config.get("platform") or "not named")


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """The `parameters` of a config: name -> string value."""
    return {name: str(value.get("string_value", "")) for name, value in (config.get("parameters") or {}).items()}


def parameters_of(config: Mapping[str, Any], label: str) -> dict[str, str]:
    """The `parameters` of a config, and the options of an execution accelerator under their names.

    Args:
        label: `model/version`, for messages.

    Raises:
        ConfigError: the accelerator's options are not whole.
    """
    return accelerator_parameters(label, config, parameters(config))


def chosen_filename(config: Mapping[str, Any]) -> str | None:
    """default_model_filename where the user wrote it; core fills in these two by itself, from the backend's name."""
    name = config.get("default_model_filename") or None
    return None if name in ("model.unified", "model.py") else name
