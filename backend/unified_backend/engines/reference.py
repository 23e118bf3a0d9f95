"""The canonical model as it is, unoptimised: what its signature is read from, and what engines are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unified_backend import hosts
from unified_backend.engines import Threads
from unified_backend.engines.onnxruntime import OnnxRuntimeRunner
from unified_backend.engines.sessions import open_session, session_options
from unified_backend.errors import SourceError
from unified_backend.formats.onnx import read_model
from unified_backend.settings import Settings
from unified_backend.tensors import Signature, TensorSpec, data_type

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["open_reference"]


def open_reference(
    label: str, path: Path, settings: Settings, level: str = "ORT_DISABLE_ALL"
) -> tuple[OnnxRuntimeRunner, list[str]]:
    """The model as it is, unoptimised, with the signature read from it: what engines are compared with.

    Args:
        level: name of a GraphOptimizationLevel, for who wants to see what an optimised graph has for a signature.

    Returns:
        the runner, and a note for each output that Triton cannot serve and that was left out.

    Raises:
        SourceError: an operator, a type or a version that ONNX Runtime does not have.
    """
    import onnxruntime

    options = session_options(settings, Threads(intra_op=hosts.cores()))
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = open_session(label, path, options)
    _refuse_strings_beside_bfloat16(label, session)
    rankless = _of_unknown_rank(path, [*session.get_inputs(), *session.get_outputs()])
    inputs = tuple(_spec(label, argument, rankless) for argument in session.get_inputs())
    served = [argument for argument in session.get_outputs() if data_type(argument.type)]
    notes = [
        f"output {argument.name} is left out: Triton has no type for {argument.type}"
        for argument in session.get_outputs()
        if not data_type(argument.type)
    ]
    if not served:
        raise SourceError(
            f"{label}: no output can be served",
            "; ".join(notes) or "the graph has none",
            "Export the model with tensor outputs (scikit-learn converters: zipmap=False)",
        )
    return OnnxRuntimeRunner(session, Signature(inputs, tuple(_spec(label, one, rankless) for one in served))), notes


def _of_unknown_rank(path: Path, arguments: Sequence[onnxruntime.NodeArg]) -> set[str]:
    """Names of those whose rank the model leaves open; ONNX Runtime shows them with the empty shape of a scalar."""
    shapeless = {argument.name for argument in arguments if not argument.shape}
    if not shapeless:
        return set()
    graph = read_model(path).graph
    declared = {value.name for value in (*graph.input, *graph.output) if value.type.tensor_type.HasField("shape")}
    return shapeless - declared


def _spec(label: str, argument: onnxruntime.NodeArg, rankless: set[str]) -> TensorSpec:
    row = data_type(argument.type)
    if row is None:
        raise SourceError(
            f"{label}: input {argument.name} cannot be served",
            f"Triton has no type for {argument.type}",
            "Export the model with tensor inputs of a type that Triton has",
        )
    return TensorSpec(argument.name, row.triton, None if argument.name in rankless else tuple(argument.shape))


def _refuse_strings_beside_bfloat16(label: str, session: onnxruntime.InferenceSession) -> None:
    tensors = {argument.type for argument in (*session.get_inputs(), *session.get_outputs())}
    strings = [argument.name for argument in session.get_inputs() if argument.type == "tensor(string)"]
    if strings and "tensor(bfloat16)" in tensors:
        raise SourceError(
            f"{label}: input {strings[0]} cannot be served",
            "ONNX Runtime's Python interface does not take strings together with bfloat16 tensors",
            "Export the model with float32 or float16 inputs and outputs",
        )
