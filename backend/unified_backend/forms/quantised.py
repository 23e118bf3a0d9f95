"""A model with Q/DQ around its layers: calibrated, compared with FP32, its worst layers left out where need be."""

from __future__ import annotations

import dataclasses
import logging
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend import hosts
from unified_backend.cache import Key
from unified_backend.engines import Canonical
from unified_backend.engines.sessions import runtime_version
from unified_backend.errors import ConfigError, ConversionError
from unified_backend.forms.worst_layers import Written, without_the_worst
from unified_backend.graph.files import MODEL, read_whole, write_whole
from unified_backend.graph.quantiser import QUANTISED, TABLE
from unified_backend.lookups import Lookup
from unified_backend.settings import Settings
from unified_backend.tensors import Array
from unified_backend.toolchains import job as jobs

__all__ = ["Quantising", "layers_of", "quantised", "scheme_of", "split"]

logger = logging.getLogger(__name__)

_RECIPE = 1  # raised when the same key fields would give other files
_WORKER = "unified_backend.graph.quantiser"
_DISK_BYTES = 64 * 10**9
_FEW = 8  # batches from which a quarter is held out, to be compared on what was not calibrated on
_MOST_CHECKED = 16  # batches that each trial is compared on

Feeds = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Quantising:
    """What a model is quantised with.

    Attributes:
        data: the network's inputs, one batch each; empty for dynamic quantisation.
        data_key: digests of all that the data depends on.
    """

    canonical: Canonical
    settings: Settings
    data: Sequence[Feeds]
    data_key: Mapping[str, Any]
    lookup: Lookup


def scheme_of(settings: Settings) -> str:
    """How activations and weights are stored, by what runs them.

    GPUs and ARM want both signed. On x86-64 only unsigned activations are fast: EfficientNet-Lite0 took 2.1 ms so, 5.3
    with signed ones and 4.9 in FP32 (one thread, AVX512-VNNI). Without VNNI weights get 7 bits: sums of products of 8
    saturate.
    """
    if settings.gpu or platform.machine() == "aarch64":
        return "s8s8"
    return "u8s8" if "vnni" in hosts.cpu_features() else "u8s7"


def split(data: Sequence[Feeds]) -> tuple[Sequence[Feeds], Sequence[Feeds]]:
    """What is calibrated on, and what is compared on: the same where there is little."""
    if len(data) < _FEW:
        return data, data[:_MOST_CHECKED]
    held = [one for number, one in enumerate(data) if number % 4 == 3]
    return [one for number, one in enumerate(data) if number % 4 != 3], held[:_MOST_CHECKED]


def quantised(what: Quantising, judge: Callable[[Path], None], folder: Path) -> dict[str, Any]:
    """Write the model in INT8; facts of it.

    Args:
        judge: compares a model with FP32.
        folder: gets `model.onnx`.

    Raises:
        ConfigError: it cannot be quantised.
        VerificationError: it answers otherwise than in FP32, even with its worst layers left in that.
    """
    settings, label = what.settings, what.canonical.label
    job: dict[str, Any] = {"exclude": list(settings.exclude), "scheme": scheme_of(settings)}
    learnt, checked = split(what.data)
    dynamic = settings.calibration_method == "dynamic"
    if not dynamic:
        job["table"] = str(_table(what, learnt))

    def write(patterns: Sequence[str]) -> Written:
        task = {**job, "exclude": [*job["exclude"], *patterns]}
        result = _run(what, "dynamic" if dynamic else "quantise", task, [], folder)
        write_whole(read_whole(folder / QUANTISED), folder / MODEL)
        _clear(folder)
        return Written(result["layers"], result["kept"])

    def alone(_: Written) -> Sequence[Mapping[str, Any]]:
        return layers_of(what, checked, folder)

    written = without_the_worst(label, write, lambda: judge(folder / MODEL), None if dynamic else alone)
    return {
        "nodes": written.layers,
        "kept": written.kept,
        "scheme": job["scheme"],
        "method": settings.calibration_method,
        "batches": [len(learnt), len(checked)],
        "held_out": learnt is not what.data,
    }


def layers_of(what: Quantising, checked: Sequence[Feeds], folder: Path) -> list[Mapping[str, Any]]:
    """Each layer quantised alone: `layer`, `operator`, `max_rel`, `cosine` of the outputs; the worst first.

    Args:
        folder: for the work.
    """
    table = _table(what, split(what.data)[0])
    job = {"exclude": list(what.settings.exclude), "scheme": scheme_of(what.settings), "table": str(table)}
    logger.info("measuring layers model=%s batches=%d", what.canonical.label, len(checked))
    rows = _run(what, "layers", job, checked[:4], folder)["rows"]
    _clear(folder)
    return list(rows)


def _table(what: Quantising, learnt: Sequence[Feeds]) -> Path:
    """The ranges of the values inside the model."""
    key = Key(
        "calibration",
        {
            "canonical": what.canonical.digest,
            "data": dict(what.data_key),
            "method": what.settings.calibration_method,
            "onnxruntime": runtime_version(),
            "recipe": _RECIPE,
        },
    )

    def make(folder: Path) -> dict[str, Any]:
        _run(what, "calibrate", {"method": what.settings.calibration_method}, learnt, folder)
        _clear(folder)
        return {"batches": len(learnt)}

    return what.lookup(key, make).path / TABLE


def _run(what: Quantising, task: str, job: Mapping[str, Any], feeds: Sequence[Feeds], folder: Path) -> dict[str, Any]:
    """A task of the quantiser; what it wrote lies in `folder`."""
    label, settings = what.canonical.label, what.settings
    given = folder / "feeds"
    given.mkdir()
    files = []
    for number, one in enumerate(feeds):
        files.append(str(given / f"{number}.npz"))
        np.savez(files[-1], **dict(one))
    limits = jobs.Limits(settings.conversion_seconds, settings.conversion_memory, _DISK_BYTES)
    whole = {**job, "task": task, "path": str(what.canonical.path.absolute()), "feeds": files}
    try:
        done = jobs.run(Path(hosts.interpreter()), _WORKER, whole, folder, limits, label)
    except ConversionError as error:
        raise ConfigError(
            f"{label}: the model cannot be quantised",
            error.why,
            "Exclude the layer that the reason names (parameter `exclude`), raise `conversion_memory`, or take a "
            "higher precision",
        ) from None
    shutil.rmtree(given, ignore_errors=True)
    return done.result


def _clear(folder: Path) -> None:
    """Leave what the entry is made of."""
    kept = {MODEL, f"{MODEL}.data", TABLE}
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()
