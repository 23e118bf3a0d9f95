"""A pipeline written into a model repository: as a Triton ensemble of its parts, or as one fused model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.ensembles.definition import Definition, Step
from unified_backend.ensembles.members import brought
from unified_backend.ensembles.placing import placed
from unified_backend.ensembles.wiring import Wired
from unified_backend.errors import ConfigError
from unified_backend.formats.pipeline import (
    MODELS,
    STAGES,
    Compiled,
    CompiledStep,
    CompiledTensor,
    read_compiled,
    write_compiled,
)
from unified_backend.pbtxt import read_pbtxt, to_pbtxt
from unified_backend.repository import backend_of

__all__ = ["write_ensemble", "write_fused"]


def write_fused(wired: Wired, repository: Path, replace: bool) -> list[Path]:
    """One model that runs the whole pipeline in its process.

    Args:
        replace: take the place of what is there under the names.

    Returns:
        the model directories written.

    Raises:
        ConfigError: a model that the pipeline does not bring, or one of another backend.
        Refused: there is something of that name, or another pipeline uses it.
    """
    definition = wired.definition
    for step in definition.steps:
        if not step.stage and not step.source:
            raise ConfigError(
                f"{step.where}: {step} is a model of the repository",
                "a fused pipeline carries its models with it",
                "Name its directory with `from`, or build the ensemble",
            )
        if step.source and (backend := backend_of(step.source)) not in ("unified", "not named"):
            raise ConfigError(
                f"{step.where}: {step} is a model of the backend {backend}",
                "a fused pipeline runs its models in this one",
                "Build the ensemble, which runs models of any backend",
            )

    def write(folder: Path) -> None:
        version = folder / definition.name / "1"
        for place in (STAGES, MODELS):
            (version / place).mkdir(parents=True)
        for step in definition.steps:
            if step.stage:
                shutil.copy2(step.stage, version / STAGES)
            elif not (version / MODELS / step.name).exists():
                brought(step, definition, version / MODELS)
        write_compiled(_compiled(wired), version)
        config = {"backend": "unified", "max_batch_size": definition.max_batch_size}
        _write_config(folder / definition.name, config, definition)

    return placed(write, definition, repository, replace)


def write_ensemble(wired: Wired, repository: Path, replace: bool) -> list[Path]:
    """A Triton ensemble, the stages as models of their own, and the models that the pipeline brings.

    Args:
        replace: take the place of what is there under the names.

    Returns:
        the model directories written.

    Raises:
        ConfigError: a model takes fewer rows at once than the pipeline gives, or padded items reach the client.
        Refused: there is something of one of these names, or another pipeline uses it and would get another model.
    """
    definition = wired.definition
    _require_items_through_stages(wired)
    if clash := [step for step in definition.steps if not step.stage and step.name == definition.name]:
        raise ConfigError(
            f"{clash[0].where}: {clash[0]} has the name of the pipeline",
            "both are models of the repository, which has one of each name",
            "Name one of them otherwise",
        )

    most: dict[str, int] = {}
    for step, level in zip(definition.steps, wired.levels, strict=True):
        rows = definition.max_batch_size if level is None else definition.max_items
        most[step.name] = max(rows, most.get(step.name, 0))

    def write(folder: Path) -> None:
        for step in definition.steps:
            if step.stage:
                _write_stage(wired, step, folder)
            elif step.source and not (folder / step.name).exists():
                brought(step, definition, folder, most[step.name] if wired.batched[step.index] else None)
            elif not step.source:
                _require_rows(wired, step, repository / step.name, most[step.name])
        (folder / definition.name / "1").mkdir(parents=True)
        _write_config(folder / definition.name, _ensemble(wired), definition)

    return placed(write, definition, repository, replace)


def _compiled(wired: Wired) -> Compiled:
    definition = wired.definition
    return Compiled(
        definition.name,
        definition.max_batch_size,
        definition.max_items,
        tuple(spec.name for spec in definition.inputs),
        definition.outputs,
        {
            name: CompiledTensor(tensor.spec.dtype, tensor.spec.shape, tensor.items)
            for name, tensor in wired.tensors.items()
        },
        tuple(
            CompiledStep(
                step.name,
                "stage" if step.stage else "model",
                f"{STAGES}/{step.stage.name}" if step.stage else f"{MODELS}/{step.name}",
                step.inputs,
                step.outputs,
            )
            for step in definition.steps
        ),
    )


def _stage_model(definition: Definition, step: Step) -> str:
    return f"{definition.name}_{step.name}"


def _write_stage(wired: Wired, step: Step, folder: Path) -> None:
    """A stage as a model of its own: a pipeline of one step, whose requests are of one sample each."""
    assert step.stage
    definition, signature = wired.definition, wired.signatures[step.index]
    tensors = {}
    for own, name in (*step.inputs.items(), *step.outputs.items()):
        spec = next(spec for spec in (*signature.inputs, *signature.outputs) if spec.name == own)
        tensors[own] = CompiledTensor(spec.dtype, spec.shape, None if wired.tensors[name].items is None else 0)
    if both := step.inputs.keys() & step.outputs.keys():
        raise ConfigError(
            f"{step.where}: {step} has an input and an output called {', '.join(both)}",
            "Triton would serve it as a model, whose tensors have a name each",
            "Name one of them otherwise in the stage",
        )
    counts = {
        own: f"{own}_items" for own, name in (*step.inputs.items(), *step.outputs.items()) if _padded(wired, name)
    }
    compiled = Compiled(
        _stage_model(definition, step),
        0,
        definition.max_items,
        tuple(step.inputs),
        {own: own for own in step.outputs},
        tensors,
        (
            CompiledStep(
                step.name,
                "stage",
                f"{STAGES}/{step.stage.name}",
                {own: own for own in step.inputs},
                {own: own for own in step.outputs},
            ),
        ),
        counts,
    )
    version = folder / compiled.name / "1"
    if version.exists():  # the same file in another step
        if read_compiled(version, compiled.name) != compiled:
            raise ConfigError(
                f"{step.where}: {step} is used in two ways",
                "a tensor of items goes into a model or comes out of one in one step only",
                "Give the file another name for one of them",
            )
        return
    (version / STAGES).mkdir(parents=True)
    shutil.copy2(step.stage, version / STAGES)
    write_compiled(compiled, version)
    _write_config(folder / compiled.name, {"backend": "unified", "max_batch_size": 0}, definition)


def _count(wired: Wired, tensor: str) -> str:
    """The ensemble's tensor with the number of items that a tensor has."""
    made = wired.tensors[tensor].items
    assert made is not None
    return f"{wired.definition.steps[made].name}_items"


def _ensemble(wired: Wired) -> dict[str, Any]:
    definition = wired.definition
    batched = all(wired.batched)

    def row(name: str, tensor: str) -> dict[str, Any]:
        spec = wired.tensors[tensor].spec
        return {"name": name, "data_type": spec.triton, "dims": spec.dims[1:] if batched else spec.dims}

    renamed = {tensor: name for name, tensor in definition.outputs.items()}
    if len(renamed) < len(definition.outputs):
        raise ConfigError(
            f"{definition.marks.at('outputs')}: one tensor is given out under two names",
            "an ensemble has each tensor once",
            "Leave one of them out, or build it fused",
        )

    def mapped(step: Step, wiring: Mapping[str, str]) -> dict[str, str]:
        found = {own: renamed.get(name, name) for own, name in wiring.items()}
        counts: dict[str, str] = {}
        for own, name in wiring.items():
            # What a stage gives is given once: its padded outputs have one number of items.
            if step.stage and _padded(wired, name) and (wiring is step.inputs or not counts):
                counts[f"{own}_items"] = _count(wired, name)
        return found | counts

    # Triton refuses an ensemble with a tensor that nobody uses, and one with a step that gives none.
    wanted, needed = {*definition.outputs.values()}, list[Step]()
    for step in reversed(definition.steps):
        if wanted & {*step.outputs.values()}:
            wanted |= {*step.inputs.values()}
            needed.insert(0, step)
    used = {name for step in needed for name in mapped(step, step.inputs).values()} | {*definition.outputs}
    steps = [
        {
            "model_name": _stage_model(definition, step) if step.stage else step.name,
            "model_version": -1,
            "input_map": mapped(step, step.inputs),
            "output_map": {own: name for own, name in mapped(step, step.outputs).items() if name in used},
        }
        for step in needed
    ]
    return {
        "platform": "ensemble",
        "max_batch_size": definition.max_batch_size if batched else 0,
        "input": [row(spec.name, spec.name) for spec in definition.inputs],
        "output": [row(name, tensor) for name, tensor in definition.outputs.items()],
        "ensemble_scheduling": {"step": steps},
    }


def _padded(wired: Wired, tensor: str) -> bool:
    """Whether a tensor is of items and goes into a model or comes out of one: Triton hands no empty one to these."""
    steps = [step for step in wired.definition.steps if not step.stage]
    touched = any(tensor in (*step.inputs.values(), *step.outputs.values()) for step in steps)
    return touched and wired.tensors[tensor].items is not None


def _require_items_through_stages(wired: Wired) -> None:
    """
    Raises:
        ConfigError: items that are padded go to the client: of none, one row of zeros would arrive.
    """
    definition = wired.definition
    for output, name in definition.outputs.items():
        if _padded(wired, name):
            raise ConfigError(
                f'{definition.marks.at("outputs", output)}: output "{output}" is of items that a model takes or gives',
                "in an ensemble of Triton a sample without items sends one row of zeros through the models",
                "Hand it through a stage last, or build it --fused",
            )


def _require_rows(wired: Wired, step: Step, model: Path, rows: int) -> None:
    """
    Raises:
        ConfigError: a model of the repository takes fewer rows at once than the pipeline may send it.
    """
    if not wired.batched[step.index] or wired.levels[step.index] is None:
        return
    size = int(read_pbtxt(model / "config.pbtxt").get("max_batch_size") or 0)
    if size and size < rows:
        raise ConfigError(
            f"{step.where}: {step} takes {size} rows at once, and the pipeline sends up to {rows}",
            f"its config.pbtxt has max_batch_size {size}, and max_items is {rows} here",
            "Raise the one, or lower the other",
        )


def _write_config(model: Path, config: Mapping[str, Any], definition: Definition) -> None:
    text = f"# Written from {definition.marks.path.name} by `triton-unified ensemble build`; changes belong there.\n"
    (model / "config.pbtxt").write_text(text + to_pbtxt(config))
