"""TensorFlow's messages made by hand, small: graphs, SavedModels and checkpoints that no TensorFlow wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from unified_backend.formats.tensorflow_messages import message_class

__all__ = ["FLOAT", "Maker", "checkpoint", "classifier", "saved_model"]

FLOAT, INT32, STRING, INT64, BOOL = 1, 3, 7, 9, 10  # DataType of types.proto


class Maker:
    """A GraphDef that grows by a node a call."""

    def __init__(self) -> None:
        self.graph = message_class("GraphDef")()
        self.graph.versions.producer = 1087

    def node(self, name: str, op: str, *inputs: str, **types: int) -> Any:
        """Add a node; keywords are attributes that are types."""
        node = self.graph.node.add(name=name, op=op, input=inputs)
        for key, number in types.items():
            node.attr[key].type = number
        return node

    def placeholder(self, name: str, shape: Sequence[int] | None, kind: int = FLOAT, op: str = "Placeholder") -> Any:
        """Add a placeholder; None is a shape of unknown rank."""
        node = self.node(name, op, dtype=kind)
        if shape is None:
            node.attr["shape"].shape.unknown_rank = True
        else:
            node.attr["shape"].shape.SetInParent()
            for size in shape:
                node.attr["shape"].shape.dim.add(size=size)
        return node

    def constant(self, name: str, value: Any) -> Any:
        """Add a float constant."""
        array = np.asarray(value, np.float32)
        node = self.node(name, "Const", dtype=FLOAT)
        tensor = node.attr["value"].tensor
        tensor.dtype = FLOAT
        tensor.tensor_shape.SetInParent()
        for size in array.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = array.tobytes()
        return node


def classifier(maker: Maker | None = None) -> Maker:
    """y = softmax(x W), [N, 4] -> [N, 3], frozen."""
    maker = maker or Maker()
    maker.placeholder("x", (-1, 4))
    maker.constant("W", np.ones((4, 3)))
    maker.node("logits", "MatMul", "x", "W", T=FLOAT)
    maker.node("y", "Softmax", "logits", T=FLOAT)
    return maker


def saved_model(
    folder: Path,
    signatures: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] | None = None,
    tags: Sequence[Sequence[str]] = (("serve",),),
    variables: bool = False,
    assets: Sequence[str] = (),
) -> Any:
    """Write a SavedModel of the classifier, and return its message.

    Args:
        signatures: key -> inputs and outputs, each name -> tensor; `serving_default` if not given.
        tags: of each graph; all graphs are the same.
        variables: W is one, and its files are there.
        assets: names; the files are there.
    """
    maker = classifier()
    if variables:
        maker.node("v", "VarHandleOp", dtype=FLOAT)
        (folder / "variables").mkdir(parents=True)
        for name in ("variables.index", "variables.data-00000-of-00001"):
            (folder / "variables" / name).write_bytes(b"weights")
    model = message_class("SavedModel")(saved_model_schema_version=1)
    for each in tags:
        graph = model.meta_graphs.add()
        graph.meta_info_def.tags.extend(each)
        graph.meta_info_def.tensorflow_version = "2.21.0"
        graph.graph_def.CopyFrom(maker.graph)
        for key, sides in (signatures or {"serving_default": ({"image": "x:0"}, {"label": "y:0"})}).items():
            row = graph.signature_def[key]
            row.method_name = "tensorflow/serving/predict"
            for side, tensors, width in ((row.inputs, sides[0], 4), (row.outputs, sides[1], 3)):
                for name, tensor in tensors.items():
                    side[name].name, side[name].dtype = tensor, FLOAT
                    side[name].tensor_shape.dim.add(size=-1)
                    side[name].tensor_shape.dim.add(size=width)
        for name in assets:
            graph.asset_file_def.add(filename=name).tensor_info.name = "Const:0"
            (folder / "assets").mkdir(parents=True, exist_ok=True)
            (folder / "assets" / name).write_text("one\ntwo\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return model


def checkpoint(folder: Path, prefix: str, maker: Maker | None = None) -> Path:
    """Write a checkpoint's three files, and return the one that is the graph."""
    message = message_class("MetaGraphDef")()
    message.meta_info_def.tensorflow_version = "1.15.0"
    message.graph_def.CopyFrom((maker or classifier()).graph)
    message.saver_def.restore_op_name = "save/restore_all"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".index", ".data-00000-of-00001"):
        (folder / f"{prefix}{suffix}").write_bytes(b"weights")
    path = folder / f"{prefix}.meta"
    path.write_bytes(message.SerializeToString())
    return path
