"""The worker of the tensorflow toolchain: runs a TensorFlow source, and writes it as ONNX."""

from __future__ import annotations

import gc
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unified_backend.graph.saving import LARGE
from unified_backend.toolchains.workers.answering import answers, signature_of, write
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.tensorflow_damage import damage_told
from unified_backend.toolchains.workers.tensorflow_export import Exported, export
from unified_backend.toolchains.workers.tensorflow_keras import open_keras
from unified_backend.toolchains.workers.tensorflow_lite import open_lite
from unified_backend.toolchains.workers.tensorflow_options import check_opset, checked_ends, options_of
from unified_backend.toolchains.workers.tensorflow_saved_model import open_saved_model
from unified_backend.toolchains.workers.tensorflow_session import open_checkpoint, open_graph_def
from unified_backend.toolchains.workers.tensorflow_sources import Opened

__all__ = ["work"]

_OPENERS: dict[str, Callable[[Mapping[str, Any], Path], Opened]] = {
    "savedmodel": open_saved_model,
    "graphdef": open_graph_def,
    "checkpoint": open_checkpoint,
    "keras-hdf5": open_keras,
    "keras": open_keras,
    "tflite": open_lite,
}
_PACKAGES = ("tensorflow-cpu", "tf2onnx", "keras", "tf-keras", "ai-edge-litert", "onnx", "onnxsim", "numpy")


def work(job: dict[str, Any], folder: Path, tell: Callable[..., None]) -> dict[str, Any]:
    """Run the source on samples, and export it.

    The answers come first, and are handed back even if the source cannot be written as ONNX: another engine that takes
    it as it is can be checked against them.

    Args:
        job: format, path, inputs, outputs, inner, fixed, samples, opset, converter, and what the format adds.
        folder: the only one written to.
        tell: called with each phase's name.

    Returns:
        framework, converter, versions, samples, outputs, model, failure, notes, repairs.

    Raises:
        ConfigError: the converter has no such option or opset, or the model no such tensor.
        ConversionError: TensorFlow does not load the source, which may be damaged, or runs on no sample.
    """
    tell("importing")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    if job.get("legacy_keras"):
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf

    check_opset(job["opset"])
    options = options_of(job)
    tell("loading")
    shapes = options.pop("shape_override", {})  # the exported graph's inputs have the shapes of the job's
    job = {**job, "inputs": [{**row, "shape": shapes.get(row["name"], row["shape"])} for row in job["inputs"]]}
    with damage_told(job):
        opened = _OPENERS[job["format"]](job, folder)
    tell("running")
    found = answers(job, opened)
    signature = signature_of(job, opened)
    ranks = {name: array.ndim for name, array in found.samples[0].outputs.items()}
    options = checked_ends(options, job, {name: array.ndim for name, array in found.samples[0].inputs.items()}, ranks)
    tell("converting")
    lite = job["format"] == "tflite"
    # tf2onnx then leaves out TensorFlow's optimiser and copies less. 0.8 GB of weights: 7 GB of memory in place of 20.
    large = options.pop("large_model", False) or opened.weights > LARGE
    if large:
        os.environ["TF2ONNX_CATCH_ERRORS"] = "false"  # tf2onnx's optimisers then work on the graph, not on a copy
    large = large and not lite  # which is a message of less than 2 GB itself
    notes = [*opened.notes, *found.notes]
    if found.unsteady:
        differ = f"{', '.join(found.unsteady)} differ when the framework runs twice on the same input"
        notes.append(f"{differ}: random by design")
    try:
        frozen = opened.freeze(large)
    except Exception as error:  # noqa: BLE001 - TensorFlow raises whatever its own code trips over
        exported = Exported(None, f"its variables cannot be made constants: {first_line(error)}")
    else:
        del opened  # its variables and their copies: the export of a large model needs the memory
        gc.collect()
        exported = export(frozen, signature, ranks, {**options, "large_model": large}, job["opset"], folder, tell)
    nchw = [*options.get("inputs_as_nchw", ()), *options.get("outputs_as_nchw", ())] if exported.model else []
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "framework": f"litert {versions['ai-edge-litert']}" if lite else f"tensorflow {tf.__version__}",
        "converter": f"tf2onnx {versions['tf2onnx']}",
        "versions": versions,
        "samples": write(found.samples, folder, nchw),
        "outputs": [
            {"name": spec.name, "dtype": spec.dtype, "shape": _seen(spec.shape, ranks[spec.name])}
            for spec in signature.outputs
        ],
        "model": exported.model,
        "failure": exported.failure,
        "notes": notes,
        "repairs": list(exported.repairs),
    }


def _seen(shape: tuple[Any, ...] | None, rank: int) -> list[Any]:
    return [None] * rank if shape is None else list(shape)
