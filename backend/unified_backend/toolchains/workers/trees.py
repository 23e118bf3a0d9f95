"""The worker of the trees toolchain: runs models of scikit-learn, LightGBM and XGBoost, and writes them as ONNX."""

from __future__ import annotations

import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.graph.saving import MODEL
from unified_backend.tensors import TensorSpec
from unified_backend.toolchains.workers.answering import answers, write
from unified_backend.toolchains.workers.finishing import finish
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.tree_sources import OPENERS, Opened

__all__ = ["work"]

_PACKAGES = ("scikit-learn", "lightgbm", "xgboost-cpu", "skl2onnx", "onnxmltools", "onnx", "onnxsim", "numpy")
_DOMAIN = "ai.onnx.ml"
# Parameters of the converters that the worker itself sets, or whose values cannot be written as JSON.
_OWN = {
    *(
        "model",
        "initial_types",
        "target_opset",
        "targeted_onnx",
        "name",
        "doc_string",
        "zipmap",
        "final_types",
        "dtype",
    ),
    *("custom_conversion_functions", "custom_shape_calculators", "custom_parsers", "naming", "intermediate", "verbose"),
    *("without_onnx_ml", "model_optim", "dtype"),
}
_ML_OPSET = 3  # the newest of that domain that both converters write


def work(job: dict[str, Any], folder: Path, tell: Callable[..., None]) -> dict[str, Any]:
    """Run the model on samples, and export it.

    Args:
        job: format, path, inputs, inner, fixed, samples, opset, converter.
        folder: the only one written to.
        tell: called with each phase's name.

    Returns:
        framework, converter, versions, samples, outputs, model, failure, notes, repairs.

    Raises:
        ConfigError: the converter has no such option, or writes no such opset.
        ConversionError: the library does not load the model or runs on no sample.
    """
    tell("importing")
    warnings.filterwarnings("ignore")
    (row,) = job["inputs"]
    spec = TensorSpec(row["name"], row["dtype"], tuple(row["shape"]))
    opener = OPENERS[job["format"]]
    tell("loading")
    opened = opener(job, spec)
    options = _options(job, opened)
    tell("running")
    found = answers(job, opened)
    outputs = [TensorSpec(name, "FP32", (None,) * array.ndim) for name, array in found.samples[0].outputs.items()]
    tell("converting")
    failure, repairs = _exported(opened, spec, outputs, job, options, folder)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "framework": f"{opened.package} {versions[opened.distribution]}",
        "converter": f"{opened.converter} {versions[opened.converter]}",
        "versions": versions,
        "samples": write(found.samples, folder, ()),
        "outputs": [{"name": spec.name, "dtype": None, "shape": list(spec.shape or ())} for spec in outputs],
        "model": None if failure else MODEL,
        "failure": failure,
        "notes": found.notes,
        "repairs": repairs,
    }


def _options(job: Mapping[str, Any], opened: Opened) -> dict[str, Any]:
    """Options of the converter by their own names.

    Raises:
        ConfigError: the installed version has no such option, or the value cannot be its.
    """
    there = sorted(set(inspect.signature(opened.convert).parameters) - _OWN)
    options = dict(job.get("converter", {}))
    if wrong := sorted(set(options) - set(there)):
        raise ConfigError(
            f'parameter "converter" has the option {wrong[0]}',
            f"{opened.converter} has none of that name for this model",
            f"It takes {', '.join(there) or 'none'}",
        )
    return options


def _exported(
    opened: Opened,
    spec: TensorSpec,
    outputs: list[TensorSpec],
    job: Mapping[str, Any],
    options: Mapping[str, Any],
    folder: Path,
) -> tuple[str, list[str]]:
    """Why there is no model, or ""; and what was repaired in the one that is written."""
    import onnx

    opset = min(int(job["opset"]), opened.newest)
    trial = folder / "trial"
    trial.mkdir()
    try:
        model = opened.exported({"": opset, _DOMAIN: _ML_OPSET}, options)
        onnx.save(model, trial / MODEL)
        inputs = {model.graph.input[0].name: spec}
        named = {value.name: output for value, output in zip(model.graph.output, outputs, strict=True)}
        repairs = finish(trial / MODEL, inputs, named, {output.name: len(output.shape or ()) for output in outputs})
    except Exception as error:  # noqa: BLE001 - a converter raises whatever its own code trips over
        return f"{opened.converter}: {type(error).__name__}: {first_line(error)}", []
    for file in trial.iterdir():
        file.replace(folder / file.name)
    return "", repairs
