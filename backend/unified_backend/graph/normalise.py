"""Makes an ONNX model fit every engine, without changing what it computes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend.errors import SourceError
from unified_backend.formats.onnx import read_model

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_IR_VERSION", "MAX_OPSET", "RECIPE", "normalise"]

RECIPE = 1  # part of the canonical model's key: raised when the same source would give other bytes
MAX_OPSET = 26  # the newest of the default domain that ONNX Runtime 1.31.1 reads
MAX_IR_VERSION = 13  # the newest that ONNX Runtime 1.31.1 reads; onnx 1.23 writes 14, whose additions are annotations
_INITIALIZERS_NEED_NO_INPUT = 4  # IR version from which an initializer need not be listed among the graph's inputs


def normalise(source: Path, companions: Sequence[Path], folder: Path) -> list[str]:
    """Write a normalised copy of the model into `folder` if it needs one.

    Three repairs: initializers leave the list of graph inputs (they are constants; listed, they keep optimisers from
    folding them and look like required inputs after it), and the IR version and the opset are brought to ones that
    engines read, the opset only if no operator of the model has changed since.

    Args:
        source: the ONNX file.
        companions: its external data files, which lie beside it or in folders there.
        folder: where `model.onnx` and copies of its companions go.

    Returns:
        what was changed, one phrase each; empty if the source is fit as it is and nothing was written.

    Raises:
        SourceError: the file cannot be parsed, or its data has the name of a file that the copy needs.
    """
    model = read_model(source)
    changes = []
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if len(inputs) < len(model.graph.input):
        changes.append(f"{len(model.graph.input) - len(inputs)} initializers taken off the inputs")
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, _INITIALIZERS_NEED_NO_INPUT)
    if model.ir_version > MAX_IR_VERSION:
        changes.append(f"IR version {model.ir_version} written as {MAX_IR_VERSION}")
        model.ir_version = MAX_IR_VERSION
    newest = max((entry.version for entry in model.opset_import if entry.domain == ""), default=0)
    if newest > MAX_OPSET and _unchanged_since(MAX_OPSET, newest, model):
        changes.append(f"opset {newest} written as {MAX_OPSET}, between which no operator of the model changed")
        for holder in (model, *model.functions):
            for entry in holder.opset_import:
                if entry.domain == "":
                    entry.version = min(entry.version, MAX_OPSET)
    if changes:
        _refuse_names_taken(source, companions)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        for companion in companions:
            copy = folder / companion.relative_to(source.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(companion, copy)
    return changes


def _refuse_names_taken(source: Path, companions: Sequence[Path]) -> None:
    """The copy lies in a cache entry: data of these names would be written over, or over them."""
    for companion in companions:
        if companion.relative_to(source.parent).as_posix() in ("model.onnx", "manifest.json", "manifest.sig"):
            raise SourceError(
                f"{source.name} has its external data in {companion.name}",
                "a repaired copy of the model needs that name for another file",
                "Export the model again with another name for its data",
            )


def _unchanged_since(older: int, newer: int, model: onnx.ModelProto) -> bool:
    """Whether every operator of the default domain means the same in both opsets."""
    from onnx import defs

    if newer > defs.onnx_opset_version():
        return False  # nobody here knows what changed

    def unchanged(node: onnx.NodeProto) -> bool:
        if node.domain == "" and (
            not defs.has(node.op_type) or defs.get_schema(node.op_type, newer).since_version > older
        ):
            return False
        graphs = (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs))
        return all(unchanged(inner) for graph in graphs for inner in graph.node)

    return all(unchanged(node) for holder in (model.graph, *model.functions) for node in holder.node)
