"""A pipeline's version folder, opened to be served: its config completed, its models loaded, its runner made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.batching import Batching, Verdict
from unified_backend.cache import Cache, Snapshot
from unified_backend.completion import complete
from unified_backend.engines import Canonical, EachRunner, Runner
from unified_backend.ensembles.counted import CountedRunner
from unified_backend.ensembles.runner import Member, PipelineRunner
from unified_backend.errors import UnifiedError
from unified_backend.formats import find_source
from unified_backend.formats.pipeline import FILE, FORMAT, read_compiled
from unified_backend.gpus import Gpu
from unified_backend.loading import Described, Loaded, Report, describe, load, threads_of
from unified_backend.pbtxt import gives_max_batch_size
from unified_backend.repository import our_config, parameters_of, version_folder
from unified_backend.settings import read_settings
from unified_backend.stages import Stage
from unified_backend.stages.around import alone
from unified_backend.stages.decoders import without_gpu_decoders
from unified_backend.stages.staged import StagedRunner
from unified_backend.stages.user_code import user_stage

__all__ = ["describe_pipeline", "is_pipeline", "load_pipeline", "members"]

logger = logging.getLogger(__name__)


def is_pipeline(folder: Path) -> bool:
    """Whether a version folder holds a pipeline."""
    return (folder / FILE).is_file()


def describe_pipeline(label: str, folder: Path, config: Mapping[str, Any], cache: Cache, gpu: Gpu | None) -> Described:
    """The pipeline in a version folder, with its config completed; its models are not looked at yet.

    Raises:
        SourceError: `pipeline.json` cannot be used.
        ConfigError: the config contradicts it.
    """
    report = Report()
    with report.phase("describe"):
        pipeline = read_compiled(folder, label)
        settings = dataclasses.replace(read_settings(label, parameters_of(config, label), ()), gpu=gpu)
        source = find_source(label, folder, cache.store.memo, FILE)
        signature = pipeline.counted_signature
        verdict = Verdict.PROVEN if pipeline.max_batch_size else Verdict.IMPOSSIBLE
        why = "samples are kept apart" if pipeline.max_batch_size else "its requests are of one sample each"
        batching = Batching(verdict, why)
        completed, notes = complete(label, config, signature, batching, pipeline.max_batch_size, False)
    report.notes.extend(notes)
    canonical = Canonical(label, source.path, "", signature, format=FORMAT, judged_by=FORMAT)
    snapshot = Snapshot(cache.store.memo, source.files)
    return Described(source, snapshot, settings, canonical, alone(label), {}, signature, batching, completed, report)


def load_pipeline(described: Described, cache: Cache) -> Loaded:
    """Load the models of a pipeline as single ones are loaded: converted, verified, cached.

    Raises:
        UnifiedError: one of them, or a stage, cannot be loaded; names it.
    """
    folder, label = described.source.path.parent, described.source.label
    pipeline = read_compiled(folder, label)
    threads = threads_of(described.settings, described.config)
    size = max(pipeline.max_batch_size, 1)
    if described.settings.gpu is None:
        without_gpu_decoders()
    stages: dict[int, Stage] = {}
    loaded: dict[int, Member] = {}
    names: dict[str, Member] = {}
    try:
        for number, step in enumerate(pipeline.steps):
            if step.kind == "stage":
                stages[number] = user_stage(folder / step.path, size, threads.intra_op, described.settings.gpu, label)
            else:
                if step.name not in names:
                    names[step.name] = _member(folder / step.path, described, cache)
                loaded[number] = names[step.name]
    except UnifiedError as error:
        for member in names.values():
            member.runner.close()
        raise type(error)(f"{label}: {error.what}", error.why, error.do) from None
    plain = PipelineRunner(pipeline, stages, loaded)
    runner: Runner = CountedRunner(plain, pipeline) if pipeline.counts else plain
    reason = f"{len(pipeline.steps)} steps: {', '.join(step.name for step in pipeline.steps)}"
    return Loaded(described, FORMAT, reason, threads, runner, runner, ())


def members(folder: Path, label: str) -> list[Path]:
    """The directories of a pipeline's models."""
    pipeline = read_compiled(folder, label)
    return list(dict.fromkeys(folder / step.path for step in pipeline.steps if step.kind == "model"))


def _member(model: Path, described: Described, cache: Cache) -> Member:
    label, folder = version_folder(model, None)
    config = our_config(label, model)
    given = gives_max_batch_size(model / "config.pbtxt")
    own = describe(label, folder, config, cache, given, described.settings.gpu)
    found = load(own, cache)
    described.report.notes.extend(f"{label}: {note}" for note in own.report.notes)
    for phase, seconds in own.report.seconds.items():
        described.report.seconds[phase] = round(described.report.seconds.get(phase, 0) + seconds, 4)
    described.report.lookups.update(own.report.lookups)
    described.report.entries.extend(own.report.entries)
    logger.info("member model=%s of=%s engine=%s", label, described.source.label, found.engine)
    size = int(own.config["max_batch_size"])
    if isinstance(found.runner, EachRunner):
        return Member(found.runner, size)
    return Member(StagedRunner(found.runner, found.runner.signature, size > 0), size)
