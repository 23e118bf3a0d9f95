"""A canonical model in a lower precision, compared with itself in FP32: it is the canonical model from there on."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend import hosts, verification
from unified_backend.cache import FileMemo, Key
from unified_backend.calibration import calibration_files, read_calibration
from unified_backend.engines import Canonical, Runner
from unified_backend.engines.reference import open_reference
from unified_backend.engines.sessions import runtime_version
from unified_backend.errors import ConfigError, VerificationError
from unified_backend.formats.onnx import coarsest_float, read_model
from unified_backend.forms.float8 import in_float8
from unified_backend.forms.foreign import samples_in
from unified_backend.forms.halved import JUDGE, halved
from unified_backend.forms.judging import EIGHT_BITS, Judge
from unified_backend.forms.quantised import Quantising, layers_of, quantised, scheme_of, split
from unified_backend.graph.cast import Half
from unified_backend.graph.files import MODEL
from unified_backend.graph.nodes import matches, named
from unified_backend.graph.quantiser import DONE
from unified_backend.lookups import Lookup
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.stages.around import Around
from unified_backend.tensors import Array
from unified_backend.verification import Sample, answered, samples_of

__all__ = ["given", "key_of_lowered", "lowered", "mixes_rows", "precisions", "sensitivity"]

logger = logging.getLogger(__name__)

_RECIPE = 2  # raised when the same key fields would give other files
Files = Sequence[tuple[Path, str]]  # each with the digest of its bytes


@dataclasses.dataclass(frozen=True)
class _Job:
    """One lowering.

    Attributes:
        samples: the user's `.npz` files.
        calibration: the files of calibration data.
    """

    canonical: Canonical
    settings: Settings
    around: Around
    samples: Files
    calibration: Files
    lookup: Lookup

    def data(self, full: Runner) -> list[dict[str, Array]]:
        """The calibration data, as the network takes it: `full`, in FP32, answers each batch."""
        label, signature = self.canonical.label, self.canonical.signature
        before = self.around.stage_before(signature, threads=hosts.cores())
        try:
            return read_calibration(label, [path for path, _ in self.calibration], signature, before, full)
        finally:
            if before:
                before.stage.close()


def lowered(canonical: Canonical, settings: Settings, around: Around, model_dir: Path, lookup: Lookup) -> Canonical:
    """The model in the precision that the settings ask for, or as it is.

    Args:
        around: the stages around the engine.
        model_dir: the model's directory, where samples and calibration data lie.

    Raises:
        ConfigError: the model cannot be lowered so, or the calibration data cannot be used.
        VerificationError: it answers otherwise than in FP32; `auto` goes on without.
    """
    if not settings.lowers or canonical.format != "onnx":
        return canonical
    memo = lookup.cache.store.memo
    job = _Job(canonical, settings, around, *given(canonical.label, settings, model_dir, memo), lookup)
    notes = list(canonical.notes)
    for precision in precisions(settings, bool(job.calibration)):
        key = key_of_lowered(
            canonical.digest, precision, settings, around, canonical.fixed, job.samples, job.calibration
        )
        entry = lookup(key, partial(_kept, job, precision))
        notes.append(str(entry.facts["note"]))
        if entry.facts["failure"]:
            logger.warning('not lowered model=%s precision=%s reason="%s"', canonical.label, precision, notes[-1])
        elif entry.facts["already"]:
            return dataclasses.replace(canonical, notes=tuple(notes), precision=precision)
        else:
            judge = entry.path / JUDGE if entry.facts["judge"] else None
            return dataclasses.replace(
                canonical,
                path=entry.path / MODEL,
                digest=key.digest,
                notes=tuple(notes),
                inner={},
                precision=precision,
                judge=judge,
            )
    return dataclasses.replace(canonical, notes=tuple(notes))


def sensitivity(
    canonical: Canonical, settings: Settings, around: Around, model_dir: Path, lookup: Lookup
) -> list[Mapping[str, Any]]:
    """What quantising each layer alone costs; see `layers_of`.

    Raises:
        ConfigError: the calibration data cannot be used, or there is none.
    """
    if _quantised_already(canonical.path):
        return []
    files = given(canonical.label, settings, model_dir, lookup.cache.store.memo)
    job = _Job(canonical, settings, around, *files, lookup)
    data = job.data(open_reference(canonical.label, canonical.path, settings)[0])
    what = Quantising(canonical, settings, data, _data_key(job.calibration, around), lookup)
    with tempfile.TemporaryDirectory(prefix="triton-unified-") as folder:
        return layers_of(what, split(data)[1], Path(folder))


def mixes_rows(precision: str | None, settings: Settings) -> bool:
    """Whether a lowering makes a row's answer depend on the others of its batch: ranges that are found in each run.

    After a cast an output that is nearly zero changes by all of itself, which says nothing of batching.
    """
    return precision == "int8" and settings.calibration_method == "dynamic"


def given(label: str, settings: Settings, model_dir: Path, memo: FileMemo) -> tuple[Files, Files]:
    """The user's samples and calibration data, each file with the digest of its bytes.

    Raises:
        ConfigError: the folder of calibration data that is named is not there, or there is one that is empty.
    """
    calibration = calibration_files(label, model_dir, settings.calibration, memo)
    return samples_in(model_dir / "samples", memo), calibration


def precisions(settings: Settings, calibrated: bool) -> Sequence[str]:
    """What is tried, in this order; `auto` tries what pays: FP16 on GPUs, INT8 on CPUs where there is data for it."""
    if settings.precision != "auto":
        return (settings.precision,) if settings.lowers and settings.precision else ()
    if settings.gpu:
        return ("fp16",)
    return ("int8",) if calibrated else ()


def key_of_lowered(
    canonical: str,
    precision: str,
    settings: Settings,
    around: Around,
    fixed: FixedDims,
    samples: Files,
    calibration: Files,
) -> Key:
    """Of the model in a precision.

    Args:
        canonical: digest of the canonical model's key.
    """
    quantising = {"scheme": scheme_of(settings), "method": settings.calibration_method}
    return Key(
        "precision",
        {
            "canonical": canonical,
            "precision": precision,
            "refused_if_it_fails": settings.precision != "auto",
            "exclude": list(settings.exclude),
            "fixed_dims": {name: {str(axis): size for axis, size in axes.items()} for name, axes in fixed.items()},
            "samples": [digest for _, digest in samples],
            "calibration": _data_key(calibration, around) if calibration else None,
            "verify": settings.verify,
            "tolerance": settings.tolerance,
            "onnxruntime": runtime_version(),
            "recipe": [_RECIPE, verification.RECIPE],
            **(quantising if precision == "int8" else {}),
        },
    )


def _data_key(calibration: Files, around: Around) -> dict[str, Any]:
    """All that calibration data depends on: the files, and the stage that raw ones go through."""
    return {"files": [digest for _, digest in calibration], "before": around.digest_before()}


def _kept(job: _Job, precision: str, folder: Path) -> dict[str, Any]:
    """As `_made`; where `auto` would go on without, the reason is kept, so that no load tries again."""
    try:
        return {"failure": False, **_made(job, precision, folder)}
    except (ConfigError, VerificationError) as error:
        if job.settings.precision != "auto":
            raise
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return {"failure": True, "already": False, "note": f"precision {precision} is not taken: {error.why}"}


def _made(job: _Job, precision: str, folder: Path) -> dict[str, Any]:
    label, settings = job.canonical.label, job.settings
    _require_matches(label, job.canonical.path, settings.exclude)
    eight = precision in EIGHT_BITS
    already = _quantised_already(job.canonical.path) if eight else ""
    if already and precision == "fp8":
        why = f"it comes quantised, with {already}"
        raise ConfigError(f"{label}: the model is not quantised to fp8", why, "Give the model before that, or int8")
    if already:
        logger.info('kept quantised model=%s operators="%s"', label, already)
        return {"already": True, "note": f"precision {precision}: the model is quantised as it came, and is kept so"}
    if eight and (coarsest := coarsest_float(job.canonical.path)) != "FP32":
        why = f"it computes in {coarsest}, and eight bits are made of FP32"
        raise ConfigError(f"{label}: the model is not quantised", why, "Export it in FP32, or leave `precision` out")
    full, _ = open_reference(label, job.canonical.path, settings)
    dynamic = precision == "int8" and settings.calibration_method == "dynamic"
    data = job.data(full) if job.calibration or (eight and not dynamic) else []
    if data:
        samples = [answered(full, one, None) for one in split(data)[1]]
    else:
        samples = samples_of(full, job.canonical.fixed, [path for path, _ in job.samples])
    if not samples and settings.verify == "strict":
        raise VerificationError(
            f"{label}: the model in {precision.upper()} cannot be compared with FP32",
            "no seeded input runs on the model",
            "Give inputs that it takes as samples/NAME.npz beside the version folders, or set parameter `verify` to "
            "`warn`",
        )
    _require_numbers(label, samples)
    judge = Judge(label, precision, settings, samples)
    if precision == "int8":
        facts = quantised(
            Quantising(job.canonical, settings, data, _data_key(job.calibration, job.around), job.lookup), judge, folder
        )
    elif precision == "fp8":
        facts = in_float8(job.canonical, settings, data, judge, folder)
    else:
        half: Half = "fp16" if precision == "fp16" else "bf16"
        facts = halved(job.canonical, settings, half, samples, judge, folder)
    if facts.get("already"):
        note = f"precision {precision}: the model came in it, and is kept so"
    else:
        note = f"precision {precision}: {facts['nodes']} nodes, {_left(facts['kept'])}; {judge.told()}"
        note += "" if facts.get("held_out", True) else "; compared on what it was calibrated on, for there is little"
    logger.info('lowered model=%s precision=%s note="%s"', label, precision, note)
    return {
        "already": False,
        **facts,
        "precision": precision,
        "note": note,
        "judge": (folder / JUDGE).exists(),
        "signature": job.canonical.signature.to_json(),
        "verified": [row.to_json() for row in judge.rows],
    }


def _quantised_already(path: Path) -> str:
    """The operators of the model that say so."""
    return ", ".join(sorted({node.op_type for node in read_model(path).graph.node} & set(DONE)))


def _require_numbers(label: str, samples: Sequence[Sample]) -> None:
    """
    Raises:
        VerificationError: a sample, or FP32's answer to it, is no number: any answer would do.
    """
    for sample in samples:
        for name, array in (*sample.feeds.items(), *sample.expected.items()):
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise VerificationError(
                    f"{label}: a lower precision cannot be compared with FP32",
                    f"{name} of a sample is NaN",
                    "Give samples that are numbers, and that the model answers with numbers",
                )


def _require_matches(label: str, path: Path, patterns: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: a pattern matches no node; names it.
    """
    nodes = named(read_model(path)).graph.node if patterns else []
    for pattern in patterns:
        if not any(matches(node, [pattern]) for node in nodes):
            names = ", ".join([node.name for node in nodes][:5])
            raise ConfigError(
                f'{label}: parameter "exclude" has {pattern}',
                f"it matches no node, output or operator of the graph; its first nodes are {names}",
                "Correct it, or leave it out",
            )


def _left(kept: Mapping[str, str]) -> str:
    """What stays in FP32, in words."""
    first = "; ".join(f"{name}: {why}" for name, why in list(kept.items())[:3])
    return f"{len(kept)} kept in FP32" + (f" ({first}{'; ...' if len(kept) > 3 else ''})" if kept else "")
