"""The quantiser, in a process of its own: ONNX Runtime's calibration, explicit Q/DQ, and the error of single layers.

Started by `toolchains.job` in the server's own Python, for it imports much and reads weights; see `quantise`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.conversion.interface import graphs_of
from unified_backend.errors import ConfigError
from unified_backend.graph.nodes import at_opset, hoist_constants, matches, named
from unified_backend.tensors import Array

if TYPE_CHECKING:
    import onnx

__all__ = ["DONE", "LAYERS", "QUANTISED", "TABLE", "work"]

TABLE, QUANTISED = "table.json", "quantised.onnx"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # that hold weights: what is gained is gained there
# Between two quantised layers these pass on what they get, or add it: quantised too, nothing goes back to FP32 there.
_BETWEEN = (
    *("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape"),
    *("Squeeze", "Transpose", "Unsqueeze"),
)
_ACTIVATIONS = ("Clip", "Relu")
DONE = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
_OPSET = 13  # the first whose Q/DQ has a scale for each channel
_MOST_LAYERS = 300


def work(job: dict[str, Any], folder: Path, tell: Callable[..., None]) -> dict[str, Any]:
    """Do one task on a model.

    Args:
        job: `task`, and `path` of the ONNX file; of `calibrate` the `feeds` (`.npz` files) and the `method`; of
            `quantise` and `layers` the `table`, the `scheme` and the patterns to `exclude`; of `layers` the `feeds`
            too; of `dynamic` the patterns.
        folder: the only one written to.
        tell: called with each phase's name.

    Returns:
        of `calibrate` nothing, and `table.json` in the folder; of `quantise` and `dynamic` the number of `layers` that
        were quantised and why others are `kept`, by name, and `quantised.onnx`; of `layers` the `rows` of the table.

    Raises:
        ConfigError: there is nothing to quantise.
    """
    tell("importing")
    logging.disable(logging.WARNING)
    import onnx

    model = named(onnx.load(job["path"]))
    hoist_constants(model.graph)
    model = _raised(model)
    prepared = folder / "prepared.onnx"
    _save(model, prepared)
    tell(job["task"])
    return _TASKS[job["task"]](job, model, prepared, folder, tell)


def _calibrate(
    job: Mapping[str, Any], model: onnx.ModelProto, prepared: Path, folder: Path, tell: Callable[..., None]
) -> dict[str, Any]:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.quantize import save_tensors_data

    method = {"min-max": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[job["method"]]
    kinds = [name for name in (*LAYERS, *_BETWEEN) if any(node.op_type == name for node in model.graph.node)]
    calibrator = create_calibrator(
        prepared, kinds, str(folder / "observed.onnx"), CalibrationMethod[method], True, ["CPUExecutionProvider"]
    )
    for number, feeds in enumerate(_feeds(job["feeds"])):
        tell(f"calibrating, file {number + 1} of {len(job['feeds'])}")
        calibrator.collect_data(_Reader([feeds]))
    save_tensors_data(calibrator.compute_data(), folder / TABLE)
    return {}


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """
    Raises:
        ConfigError: ONNX's converter does not know the model's operators.
    """
    try:
        return named(at_opset(model, _OPSET))
    except Exception as error:
        raise ConfigError(
            "the model is not quantised",
            f"Q/DQ by channel needs opset {_OPSET}, and ONNX does not raise the model to it: {str(error)[:200]}",
            f"Export it with opset {_OPSET} or later",
        ) from error


def _quantise(
    job: Mapping[str, Any], model: onnx.ModelProto, prepared: Path, folder: Path, tell: Callable[..., None]
) -> dict[str, Any]:
    layers = _layers(model)
    nodes = [node.name for node in model.graph.node if matches(node, job["exclude"])]
    kept = [name for name in layers if name in set(nodes)]
    if not layers or len(kept) == len(layers):
        raise ConfigError(
            "there is nothing to quantise",
            "every layer is excluded" if layers else f"the graph has no {', '.join(LAYERS)}",
            "Leave out the parameter `precision`, or exclude less",
        )
    _write(prepared, folder / QUANTISED, job, exclude=[*nodes, *_before(model, kept)])
    return {"layers": len(layers) - len(kept), "kept": dict.fromkeys(kept, "excluded") | _inside(model)}


def _dynamic(
    job: Mapping[str, Any], model: onnx.ModelProto, prepared: Path, folder: Path, tell: Callable[..., None]
) -> dict[str, Any]:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if any(node.op_type in ("Conv", "ConvTranspose") for node in model.graph.node):
        raise ConfigError(
            "the model is not quantised dynamically",
            "it has convolutions, which run several times slower so than in FP32",
            "Give calibration data, and take another `calibration_method`",
        )
    nodes = [node.name for node in model.graph.node if matches(node, job["exclude"])]
    quantize_dynamic(
        prepared,
        folder / QUANTISED,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=nodes,
        use_external_data_format=_large(prepared),
    )
    left = {node.name for node in onnx.load(folder / QUANTISED, load_external_data=False).graph.node}
    layers = _layers(model)
    kept = [name for name in layers if name in left]
    if len(kept) == len(layers):
        raise ConfigError(
            "there is nothing to quantise",
            f"of {len(layers)} layers none multiplies by weights, or all are excluded",
            "Leave out the parameter `precision`, or exclude less",
        )
    why = {name: "excluded" if name in nodes else "it multiplies by no weights" for name in kept}
    return {"layers": len(layers) - len(kept), "kept": why | _inside(model)}


def _sensitive(
    job: Mapping[str, Any], model: onnx.ModelProto, prepared: Path, folder: Path, tell: Callable[..., None]
) -> dict[str, Any]:
    """Each layer quantised alone, and what that does to the outputs."""
    feeds = list(_feeds(job["feeds"]))
    expected = _run(prepared, feeds)
    rows = []
    kinds = {node.name: node.op_type for node in model.graph.node}
    layers = [node.name for node in model.graph.node if node.op_type in LAYERS and not matches(node, job["exclude"])]
    for number, name in enumerate(layers[:_MOST_LAYERS]):
        if number % 10 == 0:
            tell(f"layer {number + 1} of {len(layers)}")
        _write(prepared, folder / QUANTISED, job, only=[name, *_after(model, name)])
        answers = _run(folder / QUANTISED, feeds)
        pairs = [(a, b) for one, other in zip(expected, answers, strict=True) for a, b in zip(one, other, strict=True)]
        worst = max((_relative(a, b) for a, b in pairs), default=0.0)
        cosine = min((_cosine(a, b) for a, b in pairs), default=1.0)
        rows.append({"layer": name, "operator": kinds[name], "max_rel": worst, "cosine": cosine})
    return {"rows": sorted(rows, key=lambda row: row["cosine"])}


_TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "calibrate": _calibrate,
    "quantise": _quantise,
    "dynamic": _dynamic,
    "layers": _sensitive,
}


def _write(
    prepared: Path, out: Path, job: Mapping[str, Any], exclude: Sequence[str] = (), only: Sequence[str] = ()
) -> None:
    """The model with Q/DQ around its layers, portable: no operator but ONNX's own."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quantize import load_tensors_data

    symmetric = job["scheme"] == "s8s8"
    quantize_static(
        prepared,
        out,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*LAYERS, *(_ACTIVATIONS if only else _BETWEEN)],
        per_channel=True,
        # Without VNNI two products of 8 bits may saturate the 16 bits that they are added in.
        reduce_range=job["scheme"] == "u8s7",
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=list(only) or None,
        nodes_to_exclude=list(exclude),
        use_external_data_format=_large(prepared),
        calibrate_method=load_tensors_data(Path(job["table"])).calibration_method,
        calibration_cache_path=job["table"],
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            # TensorRT takes no bias of integers, and fuses what it needs by itself.
            "QuantizeBias": not symmetric,
            "AddQDQPairToWeight": symmetric,
        },
    )


def _layers(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in LAYERS]


def _inside(model: onnx.ModelProto) -> dict[str, str]:
    """Layers in graphs that nodes hold, which are left as they are."""
    _, *inner = graphs_of(model.graph)
    layers = (node for graph in inner for node in graph.node if node.op_type in LAYERS)
    return {node.name or node.output[0]: "it is in a graph that a node holds" for node in layers}


def _before(model: onnx.ModelProto, layers: Sequence[str]) -> list[str]:
    """Nodes that only pass on what layers get: quantised, they would round what those are to have in full."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, None] = {}
    waiting = [node for node in model.graph.node if node.name in set(layers)]
    while waiting:
        for name in waiting.pop().input:
            node = made_by.get(name)
            if node is not None and node.op_type in _BETWEEN and node.name not in found:
                found[node.name] = None
                waiting.append(node)
    return list(found)


def _after(model: onnx.ModelProto, layer: str) -> list[str]:
    """The activation that a layer is quantised with."""
    made = {name for node in model.graph.node if node.name == layer for name in node.output}
    return [node.name for node in model.graph.node if node.op_type in _ACTIVATIONS and made & set(node.input)]


def _feeds(files: Sequence[str]) -> Iterator[dict[str, Array]]:
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in arrays.files}


class _Reader:
    """What ONNX Runtime's calibration asks for its inputs."""

    def __init__(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._feeds, None)


def _run(path: Path, feeds: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, dict(one)) for one in feeds]


def _relative(expected: Array, answer: Array) -> float:
    one, other = expected.astype(np.float64), answer.astype(np.float64)
    largest = float(np.abs(one).max(initial=0.0))
    return float(np.abs(one - other).max(initial=0.0)) / largest if largest else 0.0


def _cosine(expected: Array, answer: Array) -> float:
    one, other = expected.astype(np.float64).ravel(), answer.astype(np.float64).ravel()
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other / norms) if norms else 1.0


def _large(path: Path) -> bool:
    return path.with_name(path.name + ".data").exists()


def _save(model: onnx.ModelProto, path: Path) -> None:
    from unified_backend.graph.files import write_whole

    write_whole(model, path)
