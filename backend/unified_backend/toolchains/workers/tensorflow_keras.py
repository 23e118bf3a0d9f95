"""Keras files: HDF5 of every version, and `.keras`; read by the Keras that wrote them, 2 or 3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array, TensorSpec
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.tensorflow_damage import damage
from unified_backend.toolchains.workers.tensorflow_sources import (
    Frozen,
    Opened,
    shape_of,
    tensor_from,
    to_array,
    triton_dtype,
)

__all__ = ["open_keras"]


def open_keras(job: Mapping[str, Any], folder: Path) -> Opened:
    """The model in the file, in inference mode, without the optimizer it was trained with.

    Raises:
        ConversionError: Keras does not load it.
    """
    import tensorflow as tf

    model = _loaded(job, folder)
    if not model.inputs:
        raise ConversionError(
            "the Keras model has no inputs of its own",
            "it was saved before it was built, or it is a subclassed model",
            "Save it as a SavedModel with model.export(folder)",
        )
    names = _names(model, job)
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, f"input_{number}") for number, tensor in enumerate(model.inputs)]
    structure = model._nested_inputs if hasattr(model, "_nested_inputs") else model._inputs_struct

    @tf.function(input_signature=specs)  # type: ignore[untyped-decorator]
    def call(*arguments: Any) -> Any:
        answer = model(tf.nest.pack_sequence_as(structure, arguments), training=False)
        return [tf.identity(tensor) for tensor in tf.nest.flatten(answer)]

    function = call.get_concrete_function()
    results = function.structured_outputs
    outputs = _output_names(model, job, len(results))

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        answered = function(*(tensor_from(feeds[name], spec.dtype) for name, spec in zip(names, specs, strict=True)))
        return {name: to_array(tensor.numpy()) for name, tensor in zip(outputs, answered, strict=True)}

    def freeze(large: bool) -> Frozen:
        from tf2onnx.tf_loader import from_trackable

        feeds = {name: tensor.name for name, tensor in zip(names, function.inputs, strict=False)}
        fetches = {name: tensor.name for name, tensor in zip(outputs, function.outputs, strict=True)}
        graph, tables = from_trackable(model, function, list(feeds.values()), list(fetches.values()), large)
        return Frozen(graph, feeds, fetches, tables=tables)

    return Opened(
        tuple(
            TensorSpec(name, triton_dtype(name, spec.dtype), shape_of(spec.shape))
            for name, spec in zip(names, specs, strict=True)
        ),
        tuple(
            TensorSpec(name, triton_dtype(name, tensor.dtype), shape_of(tensor.shape))
            for name, tensor in zip(outputs, results, strict=True)
        ),
        run,
        freeze,
        sum(variable.dtype.size * (variable.shape.num_elements() or 0) for variable in function.variables),
    )


def _loaded(job: Mapping[str, Any], folder: Path) -> Any:
    """The model by the Keras that can read it.

    Code in a file (the byte code of a Lambda layer) runs only with `allow_unsafe`: HDF5 files too are loaded in Keras'
    safe mode, which Keras 2 itself turns on for its `.keras` files alone.
    """
    unsafe = bool(job.get("allow_unsafe"))
    path = _with_suffix(job, folder)
    try:
        if job.get("legacy_keras"):
            import tf_keras
            from tf_keras.src.saving.serialization_lib import SafeModeScope

            with SafeModeScope(not unsafe):
                return tf_keras.models.load_model(path, compile=False)
        import keras

        return keras.models.load_model(path, compile=False, safe_mode=not unsafe)
    except Exception as error:
        if found := damage(error, job):
            raise found from error
        raise ConversionError(
            "Keras does not load the file",
            first_line(error),
            "A Keras file holds no custom layers and functions: where they are defined, save the model with "
            "model.export(folder), and serve that SavedModel",
        ) from error


def _with_suffix(job: Mapping[str, Any], folder: Path) -> str:
    """The file under a name that Keras takes: it decides by the suffix, and the user's file may have any."""
    path = Path(job["path"])
    suffixes = (".keras",) if job["format"] == "keras" else (".h5", ".hdf5")
    if path.suffix in suffixes:
        return str(path)
    link = folder / f"source{suffixes[0]}"
    link.symlink_to(path)
    return str(link)


def _names(model: Any, job: Mapping[str, Any]) -> list[str]:
    """Public names of the model's inputs, in the model's order.

    Where the job's names are the model's own, by name; where they were given by the user, by place.
    """
    own = [tensor.name.partition(":")[0] for tensor in model.inputs]
    public = [row["name"] for row in job["inputs"]]
    if len(public) != len(own):
        raise ConversionError(
            f"Keras made a model with {len(own)} inputs of the file",
            f"the file describes {len(public)}: {', '.join(public)}",
            "Save it as a SavedModel with model.export(folder)",
        )
    served = {job["inner"].get(name, name): name for name in public}
    return [served[name] for name in own] if set(served) == set(own) else public


def _output_names(model: Any, job: Mapping[str, Any], count: int) -> list[str]:
    """The job's names of the outputs if it has any, else the names of the layers they come from."""
    if len(job["outputs"]) == count:
        return list(job["outputs"])
    names = list(job.get("output_layers") or getattr(model, "output_names", None) or ())
    if len(names) != count:
        names = [f"output_{number}" for number in range(count)]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        names[index] = name if seen[name] == 1 else f"{name}_{seen[name] - 1}"
    given = job.get("names", {})
    return [given.get(name, name) for name in names]
