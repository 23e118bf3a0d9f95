"""The worker of the mxnet toolchain: runs an MXNet graph, and writes it as ONNX."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import ConfigError, ConversionError
from unified_backend.graph.saving import MODEL
from unified_backend.tensors import TensorSpec
from unified_backend.toolchains.workers.answering import answers, signature_of, write
from unified_backend.toolchains.workers.finishing import finish
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.mxnet_sources import Opened, framework, open_graph

__all__ = ["work"]

_PACKAGES = ("mxnet", "onnx", "onnxsim", "numpy")
# Opsets of mx2onnx's mappings; later ones are written by onnx's own converter of versions.
_LEAST, _OWN, _MOST = 12, 13, 26
_OPTIONS = ("dynamic",)  # of mxnet.onnx.export_model, beside shapes and types, which the parameter `inputs` states


def work(job: dict[str, Any], folder: Path, tell: Callable[..., None]) -> dict[str, Any]:
    """Run the graph on samples, and export it.

    Args:
        job: format, path, inputs, inner, fixed, samples, opset, converter, weights, labels.
        folder: the only one written to.
        tell: called with each phase's name.

    Returns:
        framework, converter, versions, samples, outputs, model, failure, notes, repairs.

    Raises:
        ConfigError: the exporter has no such option, or writes no such opset.
        ConversionError: MXNet does not load the graph or runs on no sample, or it changes its answers.
    """
    tell("importing")
    framework()
    _check(job)
    tell("loading")
    opened = open_graph(job)
    tell("running")
    found = answers(job, opened)
    if found.unsteady:
        raise ConversionError(
            "the model answers otherwise each time",
            f"{', '.join(found.unsteady)} of two runs on the same input differ: it is random by design",
            "Export the graph for inference, without operators that draw random numbers",
        )
    outputs = {
        inner: TensorSpec(name, "FP32", (None,) * found.samples[0].outputs[name].ndim)
        for inner, name in opened.names.items()
    }
    tell("converting")
    signature = signature_of(job, opened)
    inputs = {opened.inner[spec.name]: spec for spec in signature.inputs}
    dynamic = job.get("converter", {}).get("dynamic", True)
    failure, repairs = _exported(opened, inputs, outputs, int(job["opset"]), bool(dynamic), folder)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "framework": f"mxnet {versions['mxnet']}",
        "converter": f"mxnet.onnx {versions['mxnet']}",
        "versions": versions,
        "samples": write(found.samples, folder, ()),
        "outputs": [{"name": spec.name, "dtype": None, "shape": list(spec.shape or ())} for spec in outputs.values()],
        "model": None if failure else MODEL,
        "failure": failure,
        "notes": found.notes,
        "repairs": repairs,
    }


def _check(job: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: the exporter has no such option, or writes no such opset.
    """
    if wrong := sorted(set(job.get("converter", {})) - set(_OPTIONS)):
        raise ConfigError(
            f'parameter "converter" has the option {wrong[0]}',
            "MXNet's exporter has none of that name, or it is stated by another parameter",
            f"It takes {', '.join(_OPTIONS)}; shapes and types of inputs are stated by the parameter inputs",
        )
    if not _LEAST <= int(job["opset"]) <= _MOST:
        raise ConfigError(
            f'parameter "opset" is {job["opset"]}',
            f"MXNet's exporter and ONNX's converter of versions write {_LEAST} to {_MOST}",
            "Choose one of these",
        )


def _exported(
    opened: Opened,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    opset: int,
    dynamic: bool,
    folder: Path,
) -> tuple[str, list[str]]:
    """Why there is no model, or ""; and what was repaired in the one that is written."""
    import onnx

    ranks = {spec.name: len(spec.shape or ()) for spec in outputs.values()}
    trial = folder / "trial"
    trial.mkdir()
    try:
        model = opened.exported(min(opset, _OWN), dynamic)
        if opset > _OWN:
            model = onnx.version_converter.convert_version(model, opset)
        onnx.save(model, trial / MODEL)
        repairs = finish(trial / MODEL, inputs, outputs, ranks)
    except Exception as error:  # noqa: BLE001 - the exporter raises whatever its own code trips over
        return f"mxnet.onnx: {type(error).__name__}: {first_line(error)}", []
    for file in trial.iterdir():
        file.replace(folder / file.name)
    return "", repairs
