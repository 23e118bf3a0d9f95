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
from unified_backend.stages.dali_pipeline import PipelineStage
from unified_backend.stages.decoders import without_gpu_decoders
from unified_backend.stages.expression import Call
from unified_backend.stages.parts import Before, Lookup
from unified_backend.stages.ready import ready_stage
from unified_backend.stages.staged import StagedRunner
from unified_backend.stages.user_code import user_stage
from unified_backend.tensors import Signature, TensorSpec

__all__ = ["Around", "alone", "surroundings"]

_FILES = (".py", ".dali")


@dataclasses.dataclass(frozen=True)
class _Probed:
    """What the stage before the engine was found to be.

    Attributes:
        feeds: output of the stage -> the engine's input that it becomes.
    """

    signature: Signature
    feeds: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Around:
    """What surrounds the engine.

    Attributes:
        label: `model/version`, for messages.
        before: the ready-made stage, or the file with the user's own, before the engine.
        fragments: what is composed onto the graph.
        after: the file with the user's own stage after the engine.
        config: what the user wrote of it.
        probes: the engine's inputs -> the stage before it.
    """

    label: str
    before: Call | Path | None
    fragments: tuple[Call, ...]
    after: Path | None
    config: Mapping[str, Any]
    probes: dict[tuple[TensorSpec, ...], _Probed] = dataclasses.field(default_factory=dict, compare=False, repr=False)

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
        if probed := self._probed(signature.inputs):
            made = {probed.feeds[spec.name]: spec for spec in probed.signature.outputs if spec.name in probed.feeds}
            for spec in signature.inputs:
                if spec.name in made and spec.shape and made[spec.name].shape:
                    sizes = zip(spec.shape, made[spec.name].shape or (), strict=True)
                    found[spec.name] = {
                        axis: size
                        for axis, (mine, size) in enumerate(sizes)
                        if axis and isinstance(size, int) and not isinstance(mine, int)
                    }
        return {name: axes for name, axes in found.items() if axes}

    def signature(self, engine: Signature, lookups: Mapping[str, Lookup]) -> Signature:
        """What requests bring and get."""
        inputs, outputs = engine.inputs, engine.outputs
        extras: tuple[TensorSpec, ...] = ()
        if probed := self._probed(inputs):
            rest = [spec for spec in inputs if spec.name not in probed.feeds.values()]
            rows = next((spec.shape[0] for spec in inputs if spec.name in probed.feeds.values() and spec.shape), None)
            inputs = (*_of_rows(probed.signature.inputs, rows), *rest)
            extras = tuple(spec for spec in probed.signature.outputs if spec.name not in probed.feeds)
            extras = _of_rows(extras, rows)
            if twice := {spec.name for spec in probed.signature.inputs} & {spec.name for spec in rest}:
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
        if (probed := self._probed(engine.inputs)) is None:
            return None
        return Before(self._stage_before(engine.inputs, max_batch_size, threads, gpu)[0], probed.feeds)

    def _probed(self, inputs: tuple[TensorSpec, ...]) -> _Probed | None:
        """What the stage before an engine with these inputs takes and makes; it is built once to be asked.

        Raises:
            ConfigError: it does not fit the engine, or its code cannot be used.
        """
        if self.before is None:
            return None
        if inputs not in self.probes:
            stage, target = self._stage_before(inputs, 1, 1, None)
            try:
                feeds = {target: target} if target else _matched(stage, inputs, self.label, Path(str(self.before)).name)
            finally:
                stage.close()
            self.probes[inputs] = _Probed(stage.signature, feeds)
        return self.probes[inputs]

    def _stage_before(
        self, inputs: tuple[TensorSpec, ...], max_batch_size: int, threads: int, gpu: Gpu | None
    ) -> tuple[Stage, str | None]:
        """The stage before the engine; of a ready-made one the input that it makes too."""
        assert self.before
        if isinstance(self.before, Path):
            return user_stage(self.before, max_batch_size, threads, gpu, self.label), None
        return ready_stage(self.before, inputs, self.config, max_batch_size, threads, gpu, self.label)

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
    if (settings.gpu is None or settings.gpu.index < 0) and (before or after):
        without_gpu_decoders()  # and not where a stage is built for the CPU to be asked, and for the GPU to be served
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


def _of_rows(specs: Sequence[TensorSpec], rows: int | str | None) -> tuple[TensorSpec, ...]:
    """A stage's tensors where the engine takes a fixed number of rows: as many go in as come out."""
    return tuple(
        dataclasses.replace(spec, shape=(rows, *spec.shape[1:]))
        if isinstance(rows, int) and spec.shape and spec.shape[0] is None
        else spec
        for spec in specs
    )


def _matched(stage: Stage, inputs: Sequence[TensorSpec], label: str, file: str) -> dict[str, str]:
    """Outputs of the user's stage -> the engine's inputs: by their names, or by their places if none is named so.

    Raises:
        ConfigError: it has more outputs than the engine has inputs, one of another type, rank or size, or one of a name
            that the engine has not got beside others that it has.
    """
    made, wanted = stage.signature.outputs, {spec.name: spec for spec in inputs}
    if isinstance(stage, PipelineStage) and any(isinstance(size, int) for spec in inputs for size in spec.shape or ()):
        made = stage.sized_outputs()
    unknown = [spec.name for spec in made if spec.name not in wanted]
    if len(made) > len(inputs):
        raise ConfigError(
            f"{label}: {file} gives {len(made)} outputs",
            f"the model has {len(inputs)} inputs: {', '.join(wanted)}",
            "Return one output for each input that it makes",
        )
    if unknown and len(unknown) < len(made):
        raise ConfigError(
            f'{label}: {file} gives "{unknown[0]}"',
            f"the model has no such input, and has others that the file gives: {', '.join(wanted)}",
            "Correct the name there",
        )
    targets = {spec.name: own.name if unknown else spec.name for spec, own in zip(made, inputs, strict=False)}
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
    """
    Raises:
        ConfigError: a tensor of the user's stage is not what the model has in its place.
    """
    do = "Convert it in that file"
    if spec.dtype == own.dtype:
        if spec.shape is None or own.shape is None:
            return
        if len(spec.shape) == len(own.shape):
            sizes = zip(spec.shape, own.shape, strict=True)
            if all(one == other or not isinstance(one, int) or not isinstance(other, int) for one, other in sizes):
                return
            do = "Correct the size in that file"
    raise ConfigError(
        f'{label}: {file} has {spec.dtype} {spec.dims} as "{spec.name}"',
        f'the model {verb} {own.dtype} {own.dims} as "{own.name}"',
        do,
    )
