"""The worker of the torch toolchain: runs a PyTorch source, and writes it as ONNX."""

from __future__ import annotations

import gc
import importlib.metadata
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.errors import ConfigError, ConversionError
from unified_backend.graph.saving import MODEL
from unified_backend.tensors import Signature, TensorSpec
from unified_backend.toolchains.workers.answering import Answered, answers, write
from unified_backend.toolchains.workers.finishing import finish
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.torch_sources import OPENERS, Asked, Opened
from unified_backend.toolchains.workers.torch_tensors import tensor_from

__all__ = ["work"]

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy")
# Parameters of torch.onnx.export that the worker itself sets, or whose values cannot be written as JSON.
_OWN = {
    *("model", "args", "f", "kwargs", "verbose", "input_names", "output_names", "opset_version", "dynamo", "report"),
    *("training", "operator_export_type", "custom_translation_table", "export_modules_as_functions", "artifacts_dir"),
    *("verify", "profile", "dump_exported_program", "fallback", "autograd_inlining"),
}
# Far above the rounding of any exporter and far below a wrong operator: the parent judges by its own tolerance.
_ROUGHLY = 1e-2
_LEAST = 2  # batch size that exporters see: a dimension of 1 is taken for a constant


def work(job: dict[str, Any], folder: Path, tell: Callable[..., None]) -> dict[str, Any]:
    """Run the source on samples, and export it by the first exporter whose model answers as it does.

    Args:
        job: format, path, inputs, inner, fixed, samples, opset, converter, and what the format adds.
        folder: the only one written to.
        tell: called with each phase's name.

    Returns:
        framework, converter, versions, samples, outputs, model, failure, notes, repairs.

    Raises:
        ConfigError: the exporter has no such option, or writes no such opset.
        ConversionError: PyTorch does not load the source or runs on no sample, or it changes its answers.
    """
    tell("importing")
    import torch

    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    options, opset = _options(job), _opset(job)
    tell("loading")
    specs = tuple(
        TensorSpec(row["name"], row["dtype"], None if row["shape"] is None else tuple(row["shape"]))
        for row in job["inputs"]
    )
    opened = OPENERS[job["format"]](job, specs)
    tell("running")
    found = answers(job, opened)
    if found.unsteady:
        raise ConversionError(
            "the model answers otherwise each time",
            f"{', '.join(found.unsteady)} of two runs on the same input differ: it is random by design, or "
            "keeps a state",
            'Save it in evaluation mode; to serve it as it answers the first time: parameter "stateful" is "allow"',
        )
    outputs = tuple(TensorSpec(name, "FP32", (None,) * array.ndim) for name, array in found.samples[0].outputs.items())
    signature = Signature(specs, outputs)
    tell("converting")
    exported = _exported(opened, signature, found.samples, options, opset, folder, tell)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "framework": f"torch {torch.__version__.partition('+')[0]}",
        "converter": f"torch {versions['torch'].partition('+')[0]}",
        "versions": versions,
        "samples": write(found.samples, folder, ()),
        "outputs": [{"name": spec.name, "dtype": None, "shape": list(spec.shape or ())} for spec in outputs],
        "notes": [*found.notes, *exported["notes"]],
        "model": exported["model"],
        "failure": exported["failure"],
        "repairs": exported["repairs"],
    }


def _options(job: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `torch.onnx.export` by their own names.

    Raises:
        ConfigError: the installed version has no such option.
    """
    import torch

    there = set(inspect.signature(torch.onnx.export).parameters) - _OWN
    options = dict(job.get("converter", {}))
    if wrong := sorted(set(options) - there):
        raise ConfigError(
            f'parameter "converter" has the option {wrong[0]}',
            "the exporter of PyTorch models has none of that name",
            f"torch.onnx.export takes {', '.join(sorted(there))}",
        )
    return options


def _opset(job: Mapping[str, Any]) -> int:
    """The opset to write.

    Raises:
        ConfigError: the exporter does not write it.
    """
    from torch.onnx import _constants

    opset, least, most = int(job["opset"]), _constants.ONNX_MIN_OPSET, _constants.ONNX_MAX_OPSET
    if not least <= opset <= most:
        raise ConfigError(
            f'parameter "opset" is {opset}', f"torch.onnx.export writes {least} to {most}", "Choose one of these"
        )
    return opset


def _exported(
    opened: Opened,
    signature: Signature,
    samples: Sequence[Answered],
    options: Mapping[str, Any],
    opset: int,
    folder: Path,
    tell: Callable[..., None],
) -> dict[str, Any]:
    """The first exporter's model that runs and answers roughly as the source does; else why each one failed."""
    failures: list[str] = []
    largest = max(samples, key=lambda sample: sample.batch or 0)
    for name, export in opened.exporters.items():
        tell(f"exporting by {name}")
        trial = folder / f"trial-{len(failures)}"
        trial.mkdir()
        arguments = tuple(tensor_from(largest.inputs[spec.name], spec) for spec in signature.inputs)
        try:
            export(Asked(arguments, signature, opset, options, trial / MODEL))
            gc.collect()  # the exporter's copy of the module
            inputs, outputs = ({spec.name: spec for spec in side} for side in (signature.inputs, signature.outputs))
            repairs = finish(trial / MODEL, inputs, outputs, {name: len(outputs[name].shape or ()) for name in outputs})
            _require_alike(trial / MODEL, samples)
        except Exception as error:  # noqa: BLE001 - an exporter raises whatever its own code trips over
            failures.append(f"{name}: {type(error).__name__}: {first_line(error)}")
            continue
        for file in trial.iterdir():
            file.replace(folder / file.name)
        tried = [f"not exported by {failure}" for failure in failures]
        return {"model": MODEL, "failure": "", "repairs": repairs, "notes": [f"exported by {name}", *tried]}
    return {"model": None, "failure": "; ".join(failures), "repairs": [], "notes": []}


def _require_alike(path: Path, samples: Sequence[Answered]) -> None:
    """
    Raises:
        ConversionError: the model does not run on a sample, or answers something else.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(path)
    for sample in samples:
        names = list(sample.outputs)
        for name, answer in zip(names, session.run(names, dict(sample.inputs)), strict=True):
            expected = np.asarray(sample.outputs[name], np.float64)
            off = np.abs(np.asarray(answer, np.float64) - expected).max(initial=0.0) if expected.size else 0.0
            if answer.shape != expected.shape or off > _ROUGHLY * np.abs(expected).max(initial=1.0):
                raise ConversionError(f"output {name} is off by {off:.2g}", "the exporter is wrong", "Try another")
