"""The stages before an engine that are ready-made: which there are, and which of the engine's inputs one makes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.gpus import Gpu
from unified_backend.stages import Stage
from unified_backend.stages.audio import AudioStage
from unified_backend.stages.expression import Call
from unified_backend.stages.image import ImageStage
from unified_backend.stages.presets import PRESETS
from unified_backend.tensors import TensorSpec

__all__ = ["ready_stage"]

_AUDIO = "audio"


def ready_stage(
    call: Call,
    inputs: Sequence[TensorSpec],
    config: Mapping[str, Any],
    max_batch_size: int,
    threads: int,
    gpu: Gpu | None,
    label: str,
) -> tuple[Stage, str]:
    """The stage that a call names, and the engine's input that it makes.

    The option `feeds` names that input where the engine has several. What requests bring is called as the first input
    of config.pbtxt that is not another of the engine's, else `image` or `audio`; it is encoded files, one a sample,
    unless the config has TYPE_UINT8 there: then it is pixels.

    Args:
        inputs: of the engine.
        config: the user's.

    Raises:
        ConfigError: there is no such stage, input or option.
    """
    known = (*PRESETS, _AUDIO)
    if call.name not in known:
        close = difflib.get_close_matches(call.name, known, n=1)
        raise ConfigError(
            f'{label}: parameter "preprocess" names the stage "{call.name}"',
            f"there are {', '.join(known)}, and files of the version folder (NAME.py, NAME.dali)",
            f"Did you mean {close[0]}?" if close else "Write one of these",
        )
    options = {name: value for name, value in call.options.items() if name != "feeds"}
    target = _target(call.options.get("feeds"), inputs, label)
    others = {spec.name for spec in inputs} - {target.name}
    rows: list[Mapping[str, Any]] = config.get("input") or []
    row = next((row for row in rows if row.get("name") not in others), {})
    name = str(row.get("name") or ("audio" if call.name == _AUDIO else "image"))
    own = Call(call.name, call.arguments, options)
    if call.name == _AUDIO:
        return AudioStage(own, target, name, max_batch_size, threads, label), target.name
    encoded = row.get("data_type") != "TYPE_UINT8"
    return ImageStage(own, target, name, encoded, max_batch_size, threads, gpu, label), target.name


def _target(feeds: Any, inputs: Sequence[TensorSpec], label: str) -> TensorSpec:
    names = [spec.name for spec in inputs]
    if feeds is None and len(inputs) == 1:
        return inputs[0]
    if feeds in names:
        return inputs[names.index(feeds)]
    raise ConfigError(
        f'{label}: parameter "preprocess" {"does not say which input it makes" if feeds is None else f"feeds {feeds}"}',
        f"the model's inputs are {', '.join(names)}",
        f"Write the option: feeds={names[0] if names else '...'}",
    )
