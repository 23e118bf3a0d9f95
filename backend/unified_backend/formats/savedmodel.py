"""TensorFlow SavedModels: `saved_model.pb` or `.pbtxt`, with its variables and assets beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import ConfigError, SourceError
from unified_backend.formats.description import Description, as_asked, choice, telling
from unified_backend.formats.graph_nodes import operators
from unified_backend.formats.saved_functions import saved_functions
from unified_backend.formats.tensorflow_files import kind_of
from unified_backend.formats.tensorflow_messages import DATA_TYPES, read_message, shape_of, triton_type
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["DEFAULT_SIGNATURE", "SavedModel"]

_DEFAULT_TAG, DEFAULT_SIGNATURE = "serve", "serving_default"
_INIT = "__saved_model_init_op"  # a signature that is none: the op that fills tables
_VARIABLE_OPS = frozenset({"Variable", "VariableV2", "VarHandleOp"})


class SavedModel:
    """The SavedModel format: a folder, known by its protobuf file."""

    name = "savedmodel"

    def detect(self, path: Path) -> bool:
        """Whether the file's fields are those of a SavedModel.

        Raises:
            SourceError: it begins as one and ends too early.
        """
        kind = kind_of(path)
        return kind is not None and kind.message == "SavedModel"

    def companions(self, path: Path) -> list[str]:
        """Its variables and its assets.

        Raises:
            SourceError: the message is damaged, or variables that the graph has are not there.
        """
        model = _read(path)
        variables = sorted(file.name for file in (path.parent / "variables").glob("variables.*") if file.is_file())
        # What is not in the folder is asked for all the same, and said to be missing by whoever looks for it.
        names = [f"variables/{name}" for name in variables]
        if any(node.op in _VARIABLE_OPS for graph in model.meta_graphs for node in graph.graph_def.node):
            names.extend(_missing_variables(variables))
        assets = {asset.filename for graph in model.meta_graphs for asset in graph.asset_file_def}
        return [*names, *(f"assets/{name}" for name in sorted(assets))]

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file says, for the tags and the signature that the settings choose.

        Raises:
            SourceError: the message is damaged; none, or several, of its graphs or signatures would do.
            ConfigError: a parameter names what the model has not got.
        """
        model = _read(path)
        facts = {"graphs": [_graph_facts(each) for each in model.meta_graphs]}
        with telling(facts):
            graph = _chosen_graph(model.meta_graphs, settings.tags, label)
            signatures = {key: row for key, row in sorted(graph.signature_def.items()) if key != _INIT}
            key = _chosen_signature(signatures, settings.signature, label)
            signature = signatures[key]
            inputs, outputs = (_specs(side, label, key) for side in (signature.inputs, signature.outputs))
        inner = {name: info.name for side in (signature.inputs, signature.outputs) for name, info in side.items()}
        if clash := sorted(set(signature.inputs) & set(signature.outputs)):
            inner, outputs, notes = _apart(signature, outputs, clash)
        else:
            notes = ()
        described = Description(
            inputs,
            outputs,
            inner,
            {"signature": key, "tags": sorted(graph.meta_info_def.tags)},
            {"signature": key, "tensorflow": graph.meta_info_def.tensorflow_version, **facts},
            notes,
        )
        return as_asked(described, settings, label)


def _read(path: Path) -> Any:
    kind = kind_of(path)
    return read_message(path, "SavedModel", kind is not None and kind.text, "SavedModel")


def _missing_variables(there: Sequence[str]) -> list[str]:
    """Names of files that belong to the variables and are not there: the index, and shards of the data."""
    missing = [] if "variables.index" in there else ["variables/variables.index"]
    shards = [name for name in there if ".data-" in name]
    count = shards[0].rpartition("-of-")[2] if shards else "00001"
    if not count.isdecimal() or len(count) != 5:
        return missing
    wanted = (f"variables.data-{number:05}-of-{count}" for number in range(int(count)))
    return [*missing, *(f"variables/{name}" for name in wanted if name not in there)]


def _chosen_graph(graphs: Sequence[Any], tags: Sequence[str], label: str) -> Any:
    """The graph with exactly the tags that were asked for, else the one for serving, else the only one."""
    sets = [sorted(graph.meta_info_def.tags) for graph in graphs]
    wanted = sorted(tags) if tags else [_DEFAULT_TAG]
    if wanted in sets:
        return graphs[sets.index(wanted)]
    if not tags and len(graphs) == 1:
        return graphs[0]
    listed = "; ".join(", ".join(row) or "(none)" for row in sets)
    kind = ConfigError if tags else SourceError
    raise kind(
        f"{label}: the SavedModel has no graph tagged {', '.join(wanted)}",
        f"its graphs are tagged: {listed}",
        f"Choose one: {choice('tags', ','.join(sets[0]))}",
    )


def _chosen_signature(signatures: Mapping[str, Any], wanted: str | None, label: str) -> str:
    usable = [key for key, row in signatures.items() if row.outputs]
    if wanted is None and (DEFAULT_SIGNATURE in usable or len(usable) == 1):
        return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in usable else usable[0]
    if wanted in usable:
        return str(wanted)
    if not usable:
        raise SourceError(
            f"{label}: the SavedModel has no signature",
            "it was saved without one, so nothing says what goes in and what comes out",
            "Save it again with tf.saved_model.save(model, folder, signatures=...), or model.export(folder) of Keras 3",
        )
    why = "none was chosen" if wanted is None else f'"{wanted}" is none of them'
    kind = SourceError if wanted is None else ConfigError
    raise kind(
        f"{label}: the SavedModel has {'one signature' if len(usable) == 1 else f'{len(usable)} signatures'}",
        f"{', '.join(usable)}; {why}",
        f"Choose one: {choice('signature', usable[0])}",
    )


def _specs(side: Mapping[str, Any], label: str, key: str) -> tuple[TensorSpec, ...]:
    rows = []
    for name, info in sorted(side.items()):
        dtype = triton_type(info.dtype)
        if info.WhichOneof("value") != "name" or dtype is None:
            what = DATA_TYPES.get(info.dtype, f"type {info.dtype}") if dtype is None else "a sparse or ragged tensor"
            raise SourceError(
                f'{label}: signature "{key}" cannot be served',
                f'its tensor "{name}" is {what}, which Triton has not got',
                "Save a signature of dense tensors of usual types",
            )
        rows.append(TensorSpec(name, dtype, shape_of(info.tensor_shape)))
    return tuple(rows)


def _apart(
    signature: Any, outputs: tuple[TensorSpec, ...], clash: Sequence[str]
) -> tuple[dict[str, str], tuple[TensorSpec, ...], tuple[str, ...]]:
    """An input and an output may have one key; ONNX and Triton's clients want two names."""
    new = {name: f"{name}_output" for name in clash}
    inner = {name: info.name for name, info in signature.inputs.items()}
    inner.update((new.get(name, name), info.name) for name, info in signature.outputs.items())
    served = tuple(TensorSpec(new.get(spec.name, spec.name), spec.dtype, spec.shape) for spec in outputs)
    return inner, served, tuple(f"output {old} is served as {name}: an input has its name" for old, name in new.items())


def _graph_facts(graph: Any) -> dict[str, Any]:
    """Everything that `saved_model_cli show --all` tells of a graph, and its operators."""
    return {
        "tags": sorted(graph.meta_info_def.tags),
        "tensorflow": graph.meta_info_def.tensorflow_version,
        "signatures": {
            name: {
                "method": row.method_name,
                "inputs": {key: _tensor_facts(info) for key, info in sorted(row.inputs.items())},
                "outputs": {key: _tensor_facts(info) for key, info in sorted(row.outputs.items())},
                **({"defaults": sorted(row.defaults)} if row.defaults else {}),
            }
            for name, row in sorted(graph.signature_def.items())
        },
        **saved_functions(graph.object_graph_def),
        "assets": sorted(asset.filename for asset in graph.asset_file_def),
        "functions": sorted(function.signature.name for function in graph.graph_def.library.function),
        "operators": operators(graph.graph_def),
        "collections": sorted(graph.collection_def),
    }


def _tensor_facts(info: Any) -> dict[str, Any]:
    kind = info.WhichOneof("value")
    shape = shape_of(info.tensor_shape)
    return {
        "name": info.name if kind == "name" else (info.coo_sparse.values_tensor_name if kind == "coo_sparse" else ""),
        "dtype": DATA_TYPES.get(info.dtype, str(info.dtype)),
        "shape": None if shape is None else [-1 if size is None else size for size in shape],
        **({"encoding": kind} if kind not in (None, "name") else {}),
    }
