"""An ONNX graph that grows behind its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.errors import ConfigError
from unified_backend.tensors import Array, Signature, TensorSpec, data_type

if TYPE_CHECKING:
    import onnx

__all__ = ["Graph", "Shape"]

Shape = tuple[int | str | None, ...]

_LOWEST_OPSET = 13  # from there on ReduceSum, Squeeze and Split take axes as inputs, as they are written here


class Graph:
    """A model whose outputs are consumed and replaced by those of nodes that are added.

    Args:
        model: changed in place.
        signature: its inputs and outputs.
        label: for messages.

    Attributes:
        model: the model.
        outputs: what it gives now: name -> specification.

    Raises:
        ConfigError: it is of an opset that cannot be raised to one that has the operators.
    """

    def __init__(self, model: onnx.ModelProto, signature: Signature, label: str) -> None:
        self.model = _of_opset(model, label)
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in signature.outputs}
        self._tensors = {spec.name: spec.name for spec in signature.outputs}
        self._taken = _names(self.model.graph)
        # Before, what is an initializer must be an input as well.
        self.model.ir_version = max(self.model.ir_version, 4)
        self._count = 0

    def tensor(self, output: str) -> str:
        """The tensor of the graph that an output is."""
        return self._tensors[output]

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; the name of its output, or the names where it has several."""
        from onnx import helper

        made = [self._fresh(operator) for _ in range(outputs)]
        self.model.graph.node.append(helper.make_node(operator, list(inputs), made, name=made[0], **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Add an initializer.

        Args:
            dtype: a NumPy dtype, or the name of a Triton type.
        """
        from onnx import numpy_helper

        kind = data_type(dtype) if isinstance(dtype, str) else None
        array: Array = np.asarray(values, kind.numpy if kind else dtype)
        name = self._fresh("constant")
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def replace(self, consumed: Sequence[str], made: Mapping[str, tuple[str, str, Shape]]) -> list[str]:
        """Take outputs away, and give others.

        Args:
            consumed: names of outputs.
            made: output -> its tensor, Triton type and shape. A name that the graph has inside gets a number.

        Returns:
            the names that the new ones have.
        """
        for name in consumed:
            del self.outputs[name]
        names = []
        for wanted, (tensor, dtype, shape) in made.items():
            name = wanted
            while name in self.outputs or name in self._taken:
                number = int(name.rpartition("_")[2]) + 1 if name.rpartition("_")[2].isdigit() else 1
                name = f"{wanted}_{number}"
            self._taken.add(name)
            self._rename(tensor, name)
            self.outputs[name] = TensorSpec(name, dtype, shape)
            self._tensors[name] = name
            names.append(name)
        return names

    def finish(self) -> None:
        """Write the outputs into the model."""
        from onnx import helper

        del self.model.graph.output[:]
        for name, spec in self.outputs.items():
            kind = data_type(spec.dtype)
            assert kind
            self.model.graph.output.append(helper.make_tensor_value_info(self._tensors[name], kind.onnx, spec.shape))

    def _rename(self, tensor: str, name: str) -> None:
        """Give a tensor that was added the name that it is served under."""
        for node in self.model.graph.node:
            for side in (node.input, node.output):
                for at, old in enumerate(side):
                    if old == tensor:
                        side[at] = name

    def _fresh(self, operator: str) -> str:
        while (name := f"unified/{operator}_{self._count}") in self._taken:
            self._count += 1
        self._taken.add(name)
        return name


def _of_opset(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    from onnx import version_converter

    version = next((row.version for row in model.opset_import if row.domain in ("", "ai.onnx")), 0)
    if version >= _LOWEST_OPSET:
        return model
    if not version:  # trees have operators of another domain alone
        model.opset_import.add(domain="", version=_LOWEST_OPSET)
        return model
    try:
        return version_converter.convert_version(model, _LOWEST_OPSET)
    except Exception as error:  # noqa: BLE001 - whatever the converter raises is told
        raise ConfigError(
            f'{label}: parameter "postprocess" cannot be composed onto the model',
            f"it has opset {version}, and cannot be raised to {_LOWEST_OPSET}: {str(error).splitlines()[0]}",
            f"Export the model with opset {_LOWEST_OPSET} or later",
        ) from None


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every name in a graph and in those inside it, which may not have a name twice."""
    inner = {
        name
        for node in graph.node
        for attribute in node.attribute
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
        for name in _names(body)
    }
    inner |= {tensor.values.name for tensor in graph.sparse_initializer}
    nodes = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    return (
        nodes | inner | {value.name for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info)}
    )
