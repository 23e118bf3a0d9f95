"""Graphs of TensorFlow 1 in a session: frozen GraphDefs, checkpoints, and SavedModels without objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import ConversionError
from unified_backend.tensors import Array, TensorSpec
from unified_backend.toolchains.workers.tensorflow_sources import Frozen, Opened, shape_of, to_array, triton_dtype

__all__ = ["open_checkpoint", "open_graph_def", "open_session"]

_TABLES = ("HashTable", "HashTableV2", "MutableHashTable", "MutableHashTableV2")
_TABLE_INITIALIZERS = ("InitializeTable", "LookupTableImport")
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp")


def open_graph_def(job: Mapping[str, Any], _folder: Path) -> Opened:
    """A frozen graph, binary or text, in a session.

    Raises:
        ConversionError: TensorFlow does not take it.
    """
    import tensorflow as tf
    from google.protobuf import text_format

    path = Path(job["path"])
    graph_def = tf.compat.v1.GraphDef()
    content = path.read_bytes()
    if job.get("text", path.suffix == ".pbtxt"):
        text_format.Parse(content.decode(), graph_def)
    else:
        graph_def.ParseFromString(content)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(_without_guesses(graph_def), name="")
        session = tf.compat.v1.Session(graph=graph)
        for operation in graph.get_operations():
            if operation.type.startswith(_TABLE_INITIALIZERS):
                session.run(operation)
    return open_session(session, job)


def open_checkpoint(job: Mapping[str, Any], _folder: Path) -> Opened:
    """A checkpoint of TensorFlow 1, `PREFIX.meta` with its variables beside it, in a session.

    The file `checkpoint` is not read: it names the folder on the machine where the model was trained.

    Raises:
        ConversionError: a variable of the graph is not in the checkpoint.
    """
    import tensorflow as tf

    path = Path(job["path"])
    meta = tf.compat.v1.MetaGraphDef()
    meta.ParseFromString(path.read_bytes())
    _without_guesses(meta.graph_def)
    prefix = f"{path.parent}/{job['prefix']}"  # of the files' names; some have nothing before the suffix
    with tf.Graph().as_default() as graph:
        session = tf.compat.v1.Session(graph=graph)
        saver = tf.compat.v1.train.import_meta_graph(meta, clear_devices=True)
        if saver is not None:
            saver.restore(session, prefix)
        else:
            _restore(session, prefix)
    return open_session(session, job)


def open_session(
    session: Any, job: Mapping[str, Any], words: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> Opened:
    """The source that a session holds, its variables and tables initialised.

    Args:
        job: `inner` names the tensors, `feeds` the constants to feed (`{"is_training:0": false}`).
    """
    graph, inner = session.graph, job["inner"]
    feeds = {name if ":" in name else f"{name}:0": value for name, value in job.get("feeds", {}).items()}
    inputs = {row["name"]: graph.get_tensor_by_name(inner[row["name"]]) for row in job["inputs"]}
    outputs = {name: graph.get_tensor_by_name(inner[name]) for name in job["outputs"]}

    def run(values: Mapping[str, Array]) -> dict[str, Array]:
        fed = {inputs[name]: array for name, array in values.items()}
        answers = session.run(list(outputs.values()), {**fed, **feeds})
        return {name: to_array(answer) for name, answer in zip(outputs, answers, strict=True)}

    def freeze(_large: bool) -> Frozen:
        names = {name: tensor.name for name, tensor in inputs.items()}
        fetches = {name: tensor.name for name, tensor in outputs.items()}
        definition, tables = _frozen(session, [*names.values(), *fetches.values(), *feeds])
        return Frozen(definition, names, fetches, feeds, tables, optimise=True)

    def described(side: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, triton_dtype(name, tensor.dtype.base_dtype), shape_of(tensor.shape))
            for name, tensor in side.items()
        )

    return Opened(described(inputs), described(outputs), run, freeze, _size(graph), words, notes)


def _frozen(session: Any, names: list[str]) -> tuple[Any, dict[bytes, tuple[Array, Array]]]:
    """The graph with constants for variables, and the contents of its tables, each under a name."""
    import tensorflow as tf
    from tensorflow.python.ops import lookup_ops

    definition = session.graph.as_graph_def(add_shapes=False)
    for node in definition.node:
        node.device = ""
        if node.op in _TABLES and not node.attr["shared_name"].s:
            node.attr["shared_name"].s = node.name.encode()
    kept = list(dict.fromkeys(name.partition(":")[0] for name in names))
    frozen = tf.compat.v1.graph_util.convert_variables_to_constants(session, definition, kept)
    tables = {}
    for node in frozen.node:
        if node.op in _TABLES:
            keys, values = (node.attr[side].type for side in ("key_dtype", "value_dtype"))
            with session.graph.as_default():
                handle = session.graph.get_tensor_by_name(f"{node.name}:0")
                export = lookup_ops.lookup_table_export_v2(handle, keys, values)
            tables[node.attr["shared_name"].s] = tuple(session.run(export))
    return frozen, tables


def _without_guesses(graph_def: Any) -> Any:
    """The graph without the attribute `_output_shapes`: files exist where it is wrong, and TensorFlow refuses them."""
    for node in graph_def.node:
        node.attr.pop("_output_shapes", None)
    return graph_def


def _restore(session: Any, prefix: str) -> None:
    """Load each variable under its own name: the graph was saved without the operators that would."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(prefix)
    there = reader.get_variable_to_shape_map()
    for operation in session.graph.get_operations():
        if operation.type not in _VARIABLES:
            continue
        name = operation.get_attr("shared_name").decode() or operation.name
        name = name if name in there else operation.name
        if name not in there:
            raise ConversionError(
                f"the checkpoint lacks the variable {name}",
                f"its graph uses it, and the checkpoint holds {len(there)} others",
                "Copy the .meta, .index and .data files of one and the same checkpoint",
            )
        value = tf.compat.v1.placeholder(operation.get_attr("dtype"))
        if operation.type == "VarHandleOp":
            assign = tf.raw_ops.AssignVariableOp(resource=operation.outputs[0], value=value)
        else:
            assign = tf.compat.v1.assign(operation.outputs[0], value, validate_shape=False)
        session.run(getattr(assign, "op", assign), {value: reader.get_tensor(name)})


def _size(graph: Any) -> int:
    import tensorflow as tf

    variables = [operation for operation in graph.get_operations() if operation.type in _VARIABLES]
    sizes = (tf.TensorShape(each.get_attr("shape")).num_elements() or 0 for each in variables)
    return sum(size * each.get_attr("dtype").size for size, each in zip(sizes, variables, strict=True))
