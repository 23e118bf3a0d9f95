"""Ways to serve a model: its config with other engines, precisions, instances and threads, in a repository aside.

    subject = model_subject(Path("models/classifier"))
    variant = Variant(engine="openvino", instances=2).over(subject.config)
    write_repository(subject, variant, folder / "models")

No model file is copied: version folders are symbolic links, which keep a model's external data beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified_backend.formats.pipeline import MODELS
from unified_backend.measuring.subjects import ServedModel, Subject
from unified_backend.pbtxt import to_pbtxt
from unified_backend.repository import parameters

__all__ = ["Variant", "combinations", "write_repository"]


@dataclass(frozen=True)
class Variant:
    """One way to serve a subject; None leaves what each config.pbtxt says.

    Attributes:
        engine: the parameter `engine`.
        precision: the parameter `precision`.
        instances: of each model.
        threads: the parameter `intra_op_thread_count`.
        max_batch_size: of the model.
        queue_delay_us: `max_queue_delay_microseconds` of dynamic batching.
        preferred_batch_sizes: `preferred_batch_size` of dynamic batching.
        parameters: others, by name.
        form: of a pipeline: `ensemble` or `fused`; in a repository, the model's name.
        without: models of a pipeline that keep their own engine, because the variant's does not take them.
    """

    engine: str | None = None
    precision: str | None = None
    instances: int | None = None
    threads: int | None = None
    max_batch_size: int | None = None
    queue_delay_us: int | None = None
    preferred_batch_sizes: Sequence[int] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    form: str = ""
    without: Sequence[str] = ()

    @property
    def id(self) -> str:
        """What it is called: `onnxruntime fp32 x2 1 thread`; only what is given is said."""
        words = [self.form, self.engine, self.precision, f"x{self.instances}" if self.instances else None]
        words += [f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else None]
        words += [f"max batch {self.max_batch_size}" if self.max_batch_size is not None else None]
        words += [f"delay {self.queue_delay_us} us" if self.queue_delay_us is not None else None]
        if self.preferred_batch_sizes:
            words.append(f"preferred {','.join(map(str, self.preferred_batch_sizes))}")
        words += [f"{name}={value}" for name, value in sorted(self.parameters.items())]
        return " ".join(filter(None, words)) or "as configured"

    def over(self, config: Mapping[str, Any]) -> Variant:
        """With what a model's config says in place of what is not given: two runs name the same thing alike."""
        own = parameters(config)
        groups = config.get("instance_group") or []
        threads = int(own["intra_op_thread_count"]) if own.get("intra_op_thread_count", "").isdecimal() else None
        return dataclasses.replace(
            self,
            engine=self.engine or own.get("engine") or "auto",
            precision=self.precision or own.get("precision"),
            instances=self.instances or sum(int(group.get("count") or 1) for group in groups) or 1,
            threads=self.threads or threads or None,
        )

    def config(self, config: Mapping[str, Any], name: str = "", inside: bool = False) -> dict[str, Any]:
        """A model's config, served so.

        Args:
            name: of the model.
            inside: it is a model inside a fused pipeline, which has no instances of its own.
        """
        made = {key: value for key, value in config.items() if key != "name"}
        own = {
            "engine": None if name in self.without else self.engine,
            "precision": None if name in self.without else self.precision,
            "intra_op_thread_count": str(self.threads) if self.threads else None,
            **self.parameters,
        }
        if "build" in parameters(config) and parameters(config)["build"] == "background":
            own["build"] = "block"  # what is measured must not change meanwhile
        strings = {key: {"string_value": value} for key, value in own.items() if value is not None}
        made["parameters"] = {**(made.get("parameters") or {}), **strings}
        if self.instances and not inside:
            groups = made.get("instance_group") or [{}]
            made["instance_group"] = [{**groups[0], "count": self.instances}]
        if self.max_batch_size is not None:
            made["max_batch_size"] = self.max_batch_size
        if self.queue_delay_us is not None or self.preferred_batch_sizes:
            batching = dict(made.get("dynamic_batching") or {})
            if self.queue_delay_us is not None:
                batching["max_queue_delay_microseconds"] = str(self.queue_delay_us)
            if self.preferred_batch_sizes:
                batching["preferred_batch_size"] = list(self.preferred_batch_sizes)
            made["dynamic_batching"] = batching
        return made


def combinations(
    engines: Sequence[str], precisions: Sequence[str], instances: Sequence[int], threads: Sequence[int], form: str = ""
) -> list[Variant]:
    """Every combination; an empty sequence leaves what the config says."""
    return [
        Variant(engine, precision, count, number, form=form)
        for engine in engines or (None,)
        for precision in precisions or (None,)
        for count in instances or (None,)
        for number in threads or (None,)
    ]


def write_repository(subject: Subject, variant: Variant, repository: Path) -> None:
    """A repository with the subject's models, served as the variant says."""
    for model in subject.models:
        _write_model(model, variant, repository / model.name, inside=False)


def _write_model(model: ServedModel, variant: Variant, target: Path, inside: bool) -> None:
    (target / str(model.version)).parent.mkdir(parents=True, exist_ok=True)
    for path in model.beside:
        (target / path.name).symlink_to(path)
    version = target / str(model.version)
    if model.members:
        version.mkdir()
        for path in model.folder.iterdir():
            if path.name != MODELS:
                (version / path.name).symlink_to(path.resolve())
        for member in model.members:
            _write_model(member, variant, version / MODELS / member.name, inside=True)
    elif model.content:
        version.mkdir()
        (version / model.content.name).symlink_to(model.content)
    else:
        version.symlink_to(model.folder)
    config = variant.config(model.config, model.name, inside) if model.ours else dict(model.config)
    if model.members or model.is_stage:  # engines are for the models in it
        config = dataclasses.replace(variant, engine=None, precision=None).config(model.config, model.name, inside)
    text = to_pbtxt(config)
    # Left out by protobuf where it is 0, and 0 is not the same as nothing.
    text += "max_batch_size: 0\n" if model.max_batch_size_given and not config.get("max_batch_size") else ""
    (target / "config.pbtxt").write_text(text)
