"""What surrounds the engine of a model: read from its parameters and its version folder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.completion import fixed_dims
from unified_backend.engines import Runner
from unified_backend.errors import ConfigError
from unified_backend.gpus import Gpu
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.stages import Stage
from unified_backend.stages.expression import Call
from unified_backend.stages.parts import Before, Lookup
from unified_backend.stages.ready import ready_stage
from unified_backend.stages.staged import StagedRunner
from unified_backend.stages.user_code import user_stage
from unified_backend.tensors import Signature, TensorSpec

__all__ = ["Around", "alone", "surroundings"]

_FILES = (".py", ".dali")


@dataclasses.dataclass(frozen=True)
class Around:
    """What surrounds the engine.

    Attributes:
        label: `model/version`, for messages.
        before: the ready-made stage, or the file with the user's own, before the engine.
        fragments: what is composed onto the graph.
        after: the file with the user's own stage after the engine.
        config: what the user wrote of it.
    """

    label: str
    before: Call | Path | None
    fragments: tuple[Call, ...]
    after: Path | None
    config: Mapping[str, Any]

    @property
    def nothing(self) -> bool:
        """Whether the engine stands alone."""
        return self.before is None and not self.fragments and self.after is None

    def engine_config(self) -> dict[str, Any]:
        """The config without tensors that are a stage's and not the engine's."""
        hidden = {side for side, there in (("input", self.before), ("output", self.fragments or self.after)) if there}
        return {name: value for name, value in self.config.items() if name not in hidden}

    def fixed(self, signature: Signature) -> FixedDims:
        """Dimensions of the engine's inputs that the config or the stage before it fixes: name -> axis -> size."""
        found = dict(fixed_dims(self.config, signature))
        if before := self.stage_before(signature):
            made = {
                before.feeds[spec.name]: spec for spec in before.stage.signature.outputs if spec.name in before.feeds
            }
            for spec in signature.inputs:
                if spec.name in made and spec.shape and made[spec.name].shape:
                    sizes = zip(spec.shape, made[spec.name].shape or (), strict=True)
                    open_axes = {
                        axis: size
                        for axis, (mine, size) in enumerate(sizes)
                        if axis and isinstance(size, int) and not isinstance(mine, int)
                    }
                    found[spec.name] = open_axes
            before.stage.close()
        return {name: axes for name, axes in found.items() if axes}

    def signature(self, engine: Signature, lookups: Mapping[str, Lookup]) -> Signature:
        """What requests bring and get."""
        inputs, outputs = engine.inputs, engine.outputs
        extras: tuple[TensorSpec, ...] = ()
        if before := self.stage_before(engine):
            rest = [spec for spec in inputs if spec.name not in before.feeds.values()]
            inputs = (*before.stage.signature.inputs, *rest)
            extras = tuple(spec for spec in before.stage.signature.outputs if spec.name not in before.feeds)
            before.stage.close()
            if twice := {spec.name for spec in before.stage.signature.inputs} & {spec.name for spec in rest}:
                raise ConfigError(
                    f"{self.label}: two inputs are called {', '.join(twice)}",
                    "the stage before the engine takes one, and the model has another",
                    "Give the stage's input another name in config.pbtxt",
                )
        outputs = (*outputs, *(lookup.spec(outputs) for lookup in lookups.values()))
        if self.after:
            outputs = self._stage_after(engine).signature.outputs
        return Signature(inputs, (*outputs, *extras))

    def staged(
        self,
        runner: Runner,
        signature: Signature,
        lookups: Mapping[str, Lookup],
        max_batch_size: int,
        threads: int,
        gpu: Gpu | None,
    ) -> Runner:
        """The engine's runner with the stages around it.

        Args:
            signature: of requests.
            max_batch_size: 0 for tensors without a batch dimension.
        """
        if self.nothing:
            return runner
        before = self.stage_before(runner.signature, max_batch_size or 1, threads, gpu)
        after = self._stage_after(runner.signature) if self.after else None
        return StagedRunner(runner, signature, max_batch_size > 0, before, lookups, after)

    def digest_before(self) -> str | None:
        """Of what the stage before the engine does: its call, or its file's bytes."""
        if isinstance(self.before, Path):
            return hashlib.sha256(self.before.read_bytes()).hexdigest()
        return str(self.before) if self.before else None

    def stage_before(
        self, engine: Signature, max_batch_size: int = 1, threads: int = 1, gpu: Gpu | None = None
    ) -> Before | None:
        """The stage before the engine, and the inputs that it makes.

        Raises:
            ConfigError: it does not fit the engine, or its code cannot be used.
        """
        if self.before is None:
            return None
        if isinstance(self.before, Path):
            stage = user_stage(self.before, max_batch_size, threads, gpu, self.label)
            return Before(stage, _matched(stage, engine.inputs, self.label, self.before.name))
        stage, target = ready_stage(self.before, engine.inputs, self.config, max_batch_size, threads, gpu, self.label)
        return Before(stage, {target: target})

    def _stage_after(self, engine: Signature) -> Stage:
        assert self.after
        stage = user_stage(self.after, 1, 1, None, self.label)
        _matched_all(stage, engine.outputs, self.label, self.after.name)
        return stage


def alone(label: str) -> Around:
    """Nothing around the engine, and nothing said of the model."""
    return Around(label, None, (), None, {})


def surroundings(label: str, folder: Path, settings: Settings, config: Mapping[str, Any]) -> Around:
    """What surrounds the engine of the model in a version folder.

    Raises:
        ConfigError: a parameter names a file that is not there, or more stages than one before the engine.
    """
    before: Call | Path | None = None
    if len(settings.preprocess) > 1:
        raise ConfigError(
            f'{label}: parameter "preprocess" names {len(settings.preprocess)} stages',
            "there is one before the engine",
            "Write one, or a preprocess.py that does the work of both",
        )
    if settings.preprocess:
        before = _file(label, folder, "preprocess", settings.preprocess[0]) or settings.preprocess[0]
    before = before or _beside(folder, "preprocess")
    *fragments, last = settings.postprocess or (None,)
    after = _file(label, folder, "postprocess", last) if last else _beside(folder, "postprocess")
    calls = tuple(call for call in (*fragments, None if after else last) if call)
    for call in calls:
        if call.name.endswith(_FILES):
            raise ConfigError(
                f'{label}: parameter "postprocess" has {call.name} before others',
                "what is composed onto the graph comes before what runs after it",
                "Write the file last",
            )
    return Around(label, before, tuple(call.with_files((folder, folder.parent)) for call in calls), after, config)


def _file(label: str, folder: Path, parameter: str, call: Call) -> Path | None:
    """The file of the version folder that a stage is named by, if it is named so."""
    if not call.name.endswith(_FILES) or call.arguments or call.options:
        return None
    path = folder / call.name
    if not path.is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ConfigError(
            f'{label}: parameter "{parameter}" is "{call.name}"',
            f"there is no such file: the version folder holds {there}",
            "Put it there, or correct the parameter",
        )
    return path


def _beside(folder: Path, name: str) -> Path | None:
    """The stage that a version folder carries."""
    return next((folder / f"{name}{suffix}" for suffix in _FILES if (folder / f"{name}{suffix}").is_file()), None)


def _matched(stage: Stage, inputs: Sequence[TensorSpec], label: str, file: str) -> dict[str, str]:
    """Outputs of the user's stage -> the engine's inputs: by their names, else by their places.

    Raises:
        ConfigError: it has more outputs than the engine has inputs, or one of another type or rank.
    """
    made, wanted = stage.signature.outputs, {spec.name: spec for spec in inputs}
    by_name = all(spec.name in wanted for spec in made)
    if len(made) > len(inputs):
        raise ConfigError(
            f"{label}: {file} gives {len(made)} outputs",
            f"the model has {len(inputs)} inputs: {', '.join(wanted)}",
            "Return one output for each input that it makes",
        )
    targets = {spec.name: spec.name if by_name else own.name for spec, own in zip(made, inputs, strict=False)}
    for spec in made:
        _require_fitting(spec, wanted[targets[spec.name]], label, file, "takes")
    return targets


def _matched_all(stage: Stage, outputs: Sequence[TensorSpec], label: str, file: str) -> None:
    """
    Raises:
        ConfigError: the user's stage takes what the model does not give.
    """
    given = {spec.name: spec for spec in outputs}
    for spec in stage.signature.inputs:
        if spec.name not in given:
            raise ConfigError(
                f'{label}: {file} takes "{spec.name}"', f"the model gives {', '.join(given)}", "Name one of these there"
            )
        _require_fitting(spec, given[spec.name], label, file, "gives")


def _require_fitting(spec: TensorSpec, own: TensorSpec, label: str, file: str, verb: str) -> None:
    ranks = spec.shape is None or own.shape is None or len(spec.shape) == len(own.shape)
    if spec.dtype != own.dtype or not ranks:
        raise ConfigError(
            f'{label}: {file} has {spec.dtype} {spec.dims} as "{spec.name}"',
            f'the model {verb} {own.dtype} {own.dims} as "{own.name}"',
            "Convert it in that file",
        )
