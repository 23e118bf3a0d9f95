"""The parts of a pipeline as they are: what each model and stage takes and gives."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_backend.cache import Cache
from unified_backend.ensembles.definition import Definition, Step
from unified_backend.ensembles.wiring import Wired, wire
from unified_backend.errors import ConfigError, UnifiedError
from unified_backend.loading import describe
from unified_backend.pbtxt import gives_max_batch_size, read_pbtxt, to_pbtxt
from unified_backend.repository import completed_by_core, our_config, version_folder, versions
from unified_backend.stages.dali_pipeline import PipelineStage
from unified_backend.stages.decoders import without_gpu_decoders
from unified_backend.stages.user_code import user_stage
from unified_backend.tensors import Signature, TensorSpec, data_type

__all__ = ["brought", "is_model_directory", "wired"]


def wired(definition: Definition, repository: Path | None, cache: Cache) -> Wired:
    """The pipeline with the signatures that its parts have, checked to fit.

    Args:
        repository: that has the models which the pipeline does not bring.

    Raises:
        ConfigError: a part is missing, or does not fit; says where.
        UnifiedError: a model cannot be loaded.
    """
    without_gpu_decoders()  # the stages are asked, and not served
    signatures, sized, batched = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for step in definition.steps:
            with _located(step):
                if step.stage:
                    signature, likely, batch = *_of_stage(step.stage, definition.name), False
                else:
                    signature, batch = _of_model_step(step, definition, repository, Path(folder), cache)
                    likely = signature
            signatures.append(signature)
            sized.append(likely)
            batched.append(batch)
    # Sizes that made-up samples tell are held against what follows, and promised to nobody.
    wire(definition, sized, batched)
    return wire(definition, signatures, batched)


def is_model_directory(path: Path) -> bool:
    """Whether this is a model's directory, with versions, and not a model file or folder."""
    return path.is_dir() and bool(versions(path))


def brought(step: Step, definition: Definition, folder: Path, max_batch_size: int | None = None) -> Path:
    """The directory of a model that the pipeline brings, written into `folder`: its files are copied.

    Args:
        max_batch_size: that it needs at least; None leaves its own.
    """
    assert step.source
    target = folder / step.name
    if is_model_directory(step.source):
        shutil.copytree(step.source, target)
        config = read_pbtxt(target / "config.pbtxt")
    else:
        version = target / "1"
        version.mkdir(parents=True)
        if step.source.is_dir():
            shutil.copytree(step.source, version / step.source.name)
        else:
            shutil.copy2(step.source, version)
        config = {}
    for version_number in versions(target):
        for path in step.files:
            shutil.copy2(path, target / str(version_number))
    given = gives_max_batch_size(target / "config.pbtxt")
    config["backend"] = config.get("backend") or "unified"
    config.pop("name", None)
    parameters = {name: {"string_value": value} for name, value in step.parameters.items()}
    config["parameters"] = {**(config.get("parameters") or {}), **parameters}
    size = int(config.get("max_batch_size") or 0)
    if max_batch_size and (size or not given):
        config["max_batch_size"] = max(size, max_batch_size)
    (target / "config.pbtxt").write_text(f"# Written by `triton-unified ensemble build`.\n{to_pbtxt(config)}")
    return target


def _of_model_step(
    step: Step, definition: Definition, repository: Path | None, folder: Path, cache: Cache
) -> tuple[Signature, bool]:
    """The signature of a model, and whether it has a batch dimension."""
    if step.source:
        model = folder / step.name
        return _of_model(model if model.exists() else brought(step, definition, folder), cache)
    model = (repository or Path()) / step.name
    if repository is None or not model.is_dir():
        raise ConfigError(
            f"{definition.name}: there is no model {step.name}",
            f"{repository} has none of that name" if repository else "no repository is given",
            "Put it there, or bring it with `from`",
        )
    return _of_model(model, cache)


def _of_stage(path: Path, label: str) -> tuple[Signature, Signature]:
    """What a stage takes and gives, and that with the sizes that made-up samples tell.

    One on DALI is called once a sample, as all are.
    """
    stage = user_stage(path, 1, 1, None, label)
    try:
        if not isinstance(stage, PipelineStage):
            return stage.signature, stage.signature
        inputs = _of_a_sample(stage.signature.inputs)
        sides = (stage.signature.outputs, stage.sized_outputs())
        one, other = (Signature(inputs, _of_a_sample(outputs)) for outputs in sides)
        return one, other
    finally:
        stage.close()


def _of_a_sample(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(dataclasses.replace(spec, shape=(1, *(spec.shape or ())[1:])) for spec in specs)


def _of_model(model: Path, cache: Cache) -> tuple[Signature, bool]:
    label, folder = version_folder(model, None)
    config = completed_by_core(model)
    if config.get("backend") == "unified":
        given = gives_max_batch_size(model / "config.pbtxt")
        config = describe(label, folder, our_config(label, model), cache, given).config
    elif not (config.get("input") and config.get("output")):
        raise ConfigError(
            f"{label}: its config.pbtxt has no inputs and outputs",
            f"its backend ({config.get('backend') or config.get('platform') or 'not named'}) is not this one",
            "Write them there",
        )
    batched = int(config.get("max_batch_size") or 0) > 0
    return Signature(_specs(config["input"], batched), _specs(config["output"], batched)), batched


def _specs(rows: list[Mapping[str, Any]], batched: bool) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(row["name"], _dtype(row), (*([None] if batched else []), *map(_open, row.get("dims") or ())))
        for row in rows
    )


def _dtype(row: Mapping[str, Any]) -> str:
    kind = data_type(str(row.get("data_type")))
    return kind.triton if kind else str(row.get("data_type")).removeprefix("TYPE_")


def _open(size: int | str) -> int | None:
    return int(size) if int(size) >= 0 else None


@contextmanager
def _located(step: Step) -> Iterator[None]:
    """Errors of a part say which step it is."""
    try:
        yield
    except UnifiedError as error:
        raise type(error)(f"{step.where}: {step}: {error.what}", error.why, error.do) from None
