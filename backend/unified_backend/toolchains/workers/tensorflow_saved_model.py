"""SavedModels, of TensorFlow 1 and 2: loaded as objects, or else as a graph in a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array, TensorSpec
from unified_backend.toolchains.workers.messages import first_line
from unified_backend.toolchains.workers.tensorflow_session import open_session
from unified_backend.toolchains.workers.tensorflow_sources import (
    Frozen,
    Opened,
    shape_of,
    tensor_from,
    to_array,
    triton_dtype,
)

__all__ = ["open_saved_model"]

_WORDS = 1000  # strings of a vocabulary that are read


def open_saved_model(job: Mapping[str, Any], _folder: Path) -> Opened:
    """The signature of the SavedModel that the job names, in its own framework.

    Files with objects (TensorFlow 2) are loaded as such. Some of them do not load ("'_UserObject' object has no
    attribute 'add_slot'": an optimizer was saved with the model), and those of TensorFlow 1 have no objects: their
    graph is loaded into a session.

    Raises:
        ConversionError: TensorFlow loads it neither way.
    """
    path = Path(job["path"]).parent
    meta = _meta_graph(path, job)
    words = tuple(_words(path, meta))
    if not meta.object_graph_def.nodes:
        return _open_graph(path, meta, job, words, ())
    try:
        return _open_objects(path, meta, job, words)
    except Exception as error:  # noqa: BLE001 - TensorFlow raises whatever its own code trips over
        note = f"its objects do not load ({first_line(error)}), so its graph was loaded without them"
        return _open_graph(path, meta, job, words, (note,))


def _meta_graph(path: Path, job: Mapping[str, Any]) -> Any:
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    metas = parse_saved_model(str(path)).meta_graphs
    wanted = set(job.get("tags") or ("serve",))
    for meta in metas:
        if set(meta.meta_info_def.tags) == wanted:
            return meta
    there = "; ".join(",".join(meta.meta_info_def.tags) for meta in metas)
    raise ConversionError(
        f"the SavedModel has no graph with the tags {','.join(sorted(wanted))}",
        f"it has {there or 'none'}",
        'Set parameter "tags" to those of one graph',
    )


def _open_objects(path: Path, meta: Any, job: Mapping[str, Any], words: tuple[str, ...]) -> Opened:
    import tensorflow as tf

    imported = tf.saved_model.load(str(path), tags=list(meta.meta_info_def.tags))
    function = imported.signatures[job["signature"]]
    signature = meta.signature_def[job["signature"]]
    specs = dict(sorted(function.structured_input_signature[1].items()))
    inputs = {row["name"]: _key(signature.inputs, row["name"], job) for row in job["inputs"]}
    outputs = {name: _key(signature.outputs, name, job) for name in job["outputs"]}

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        answers = function(
            **{key: tensor_from(feeds[name], specs[key].dtype) for name, key in inputs.items() if key in specs}
        )
        return {name: to_array(answers[key].numpy()) for name, key in outputs.items()}

    def freeze(large: bool) -> Frozen:
        from tf2onnx.tf_loader import from_trackable

        # Arguments and results are in the order of their keys; variables and tables follow the arguments.
        arguments = dict(zip(specs, (tensor.name for tensor in function.inputs), strict=False))
        results = dict(zip(sorted(function.structured_outputs), (each.name for each in function.outputs), strict=True))
        feeds = {name: arguments[key] for name, key in inputs.items() if key in arguments}
        fetches = {name: results[key] for name, key in outputs.items()}
        distinct = list(dict.fromkeys(fetches.values()))
        graph, tables = from_trackable(imported, function, list(feeds.values()), distinct, large)
        return Frozen(graph, feeds, fetches, tables=tables)

    def described(name: str, spec: Any) -> TensorSpec:
        return TensorSpec(name, triton_dtype(name, spec.dtype), shape_of(spec.shape))

    return Opened(
        tuple(described(name, specs[key]) for name, key in inputs.items() if key in specs),
        tuple(described(name, function.structured_outputs[key]) for name, key in outputs.items()),
        run,
        freeze,
        sum(variable.dtype.size * (variable.shape.num_elements() or 0) for variable in function.variables),
        words,
    )


def _open_graph(
    path: Path, meta: Any, job: Mapping[str, Any], words: tuple[str, ...], notes: tuple[str, ...]
) -> Opened:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        session = tf.compat.v1.Session(graph=graph)
        tf.compat.v1.saved_model.loader.load(session, list(meta.meta_info_def.tags), str(path))
    signature = meta.signature_def[job["signature"]]
    inner = dict(job["inner"])
    for side, names in (("inputs", [row["name"] for row in job["inputs"]]), ("outputs", job["outputs"])):
        table = getattr(signature, side)
        inner.update({name: table[_key(table, name, job)].name for name in names})
    return open_session(session, {**job, "inner": inner}, words, notes)


def _key(side: Any, name: str, job: Mapping[str, Any]) -> str:
    """The signature's own key of a tensor that may be served under another name."""
    if name in side and name not in job["inner"]:
        return name
    keys = [key for key, tensor in side.items() if tensor.name == job["inner"].get(name)]
    return name if name in keys or not keys else keys[0]


def _words(path: Path, meta: Any) -> Iterator[str]:
    """Strings of the model's vocabularies: lines of its asset files, and constants of its graph."""
    for asset in sorted((path / "assets").glob("*")):
        if asset.is_file():
            with asset.open(encoding="utf-8", errors="ignore") as lines:
                yield from (line.rstrip("\n") for _, line in zip(range(_WORDS), lines, strict=False))
    holders = [meta.graph_def.node, *(function.node_def for function in meta.graph_def.library.function)]
    for node in (node for nodes in holders for node in nodes):
        if node.op == "Const" and 1 < len(node.attr["value"].tensor.string_val) <= _WORDS:
            yield from (text.decode("utf-8", "ignore") for text in node.attr["value"].tensor.string_val)
