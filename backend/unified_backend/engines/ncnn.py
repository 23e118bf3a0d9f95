"""ncnn on the CPU: runs its own files, one sample at a time, in float32.

ncnn compares no shapes: where an input has another one than the weights were made for, it reads beyond them and answers
all the same. So a build looks at what each layer with weights gets, and a request must have exactly that shape.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.engines import Built, Canonical, Threads
from unified_backend.engines.printed import printed
from unified_backend.errors import EngineError, RequestError
from unified_backend.formats.ncnn import Layer, graph_of
from unified_backend.gpus import Gpu
from unified_backend.samples import Recipe
from unified_backend.settings import Settings
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["NcnnEngine", "NcnnRunner"]

_RECIPE = 1  # raised when the same key fields would give other files
_GRAPH, _WEIGHTS = "model.param", "model.bin"
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_MOST_LINES = 4


class NcnnEngine:
    """The ncnn CPU rung."""

    name = "ncnn"
    accepts = frozenset({"ncnn"})

    def unusable(self, gpu: Gpu | None) -> str | None:
        """Why ncnn cannot be used here, or None."""
        if importlib.util.find_spec("ncnn") is None:
            return "the package ncnn is not installed: pip install 'triton-unified-backend[direct]', or ncnn itself"
        return None

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """ncnn's version."""
        return {"ncnn": importlib.metadata.version("ncnn"), "recipe": _RECIPE}

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Keep a copy of the files, once each layer was seen to get what its weights are for.

        Raises:
            EngineError: ncnn does not read it, or an input has not the shape that the weights were made for.
        """
        shutil.copyfile(canonical.path, folder / _GRAPH)
        weights = canonical.path.with_suffix(".bin")
        if weights.is_file():
            shutil.copyfile(weights, folder / _WEIGHTS)
        batched = _is_batched(canonical.signature)
        for spec in canonical.signature.inputs:
            batch, *sizes = spec.shape or (None, None)
            if not all(isinstance(size, int) for size in (*sizes, *([] if batched else [batch]))):
                raise EngineError(
                    f"{canonical.label}: the shape of {spec.name} is not known",
                    "ncnn compares no shapes, and answers to one that is not the model's too",
                    f'Give every dimension, for example with the parameter `inputs`: "{spec.name}[-1,3,224,224]"',
                )
        layers = graph_of(folder / _GRAPH).layers
        feeds = Recipe(1, 2).feeds(canonical.signature, {}, 1 if batched else None)
        with printed() as lines:
            runner = _opened(canonical, folder)
            names = dict.fromkeys(layer.inputs[0] for layer in layers if layer.inputs)
            blobs = runner.blobs(feeds, [*names, *runner.names], 0, keep=True) if runner else None
        if blobs is None or runner is None:
            raise _refused(canonical, lines)
        for layer in layers:
            if layer.inputs and (reason := _mismatch(layer, blobs[layer.inputs[0]].shape)):
                raise EngineError(
                    f"{canonical.label}: an input has not the shape that the ncnn model was made for",
                    f"the layer {layer.name} ({layer.kind}) gets {list(blobs[layer.inputs[0]].shape)}, and {reason}",
                    "Correct the dims of the input in config.pbtxt, or the parameter `inputs`",
                )
        return {"outputs": {name: [None] * batched + list(blobs[name].shape) for name in runner.names}}

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> NcnnRunner:
        """Load the files.

        Raises:
            EngineError: ncnn does not read them.
        """
        if built is None:
            raise EngineError(
                f"{canonical.label}: ncnn cannot serve the model",
                "no disk has room for what a run in a process of its own found out",
                "Give the cache more room (TRITON_UNIFIED_CACHE_MAX_SIZE)",
            )
        shapes = built.facts["outputs"]
        outputs = tuple(TensorSpec(spec.name, "FP32", tuple(shapes[spec.name])) for spec in canonical.signature.outputs)
        return NcnnRunner(canonical, built.folder, threads.intra_op, outputs)


class NcnnRunner:
    """A loaded model that answers requests, the samples of a batch one after another."""

    def __init__(self, canonical: Canonical, folder: Path, threads: int, outputs: tuple[TensorSpec, ...]) -> None:
        """
        Raises:
            EngineError: ncnn does not read the files.
        """
        import ncnn

        given = canonical.signature
        self.signature = Signature(given.inputs, outputs)
        self.names = [spec.name for spec in given.outputs]
        self._inner = canonical.inner
        self._batched = _is_batched(given)
        self._ncnn = ncnn
        self._net: Any = ncnn.Net()
        options = self._net.opt
        options.num_threads = max(1, threads)
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = options.use_bf16_packed = False
        weights = folder / _WEIGHTS
        if self._net.load_param(str(folder / _GRAPH)) or (
            weights.is_file() and self._net.load_model(str(weights)) != 0
        ):
            raise _refused(canonical, ["it reads the graph or the weights to no end"])

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        for spec in self.signature.inputs:
            _require_shape(spec, feeds[spec.name])
        counts = {feeds[spec.name].shape[0] for spec in self.signature.inputs}
        if self._batched and len(counts) > 1:
            raise RequestError(
                "the model does not take this request",
                f"its inputs are batches of {' and '.join(map(str, sorted(counts)))}",
                "Give each input as many samples as the others",
            )
        if self._batched:
            rows = [self._answers(feeds, outputs, row) for row in range(counts.pop())]
            found = [np.stack(column) for column in zip(*rows, strict=True)]
        else:
            found = self._answers(feeds, outputs, 0)
        arrays = []
        for name, array in zip(outputs, found, strict=True):
            if into and name in into:
                np.copyto(into[name], array)
                array = into[name]
            arrays.append(array)
        return arrays

    def blobs(
        self, feeds: Mapping[str, Array], names: Sequence[str], row: int, keep: bool = False
    ) -> dict[str, Array] | None:
        """Blob name -> array, for one sample; None if ncnn does not come to one.

        Args:
            row: of the batch, where there is one.
            keep: also blobs that other layers take, for as long as this runs.
        """
        kept = []  # ncnn's matrices borrow these
        with self._net.create_extractor() as extractor:
            extractor.set_light_mode(not keep)
            for spec in self.signature.inputs:
                array = feeds[spec.name][row] if self._batched else feeds[spec.name]
                kept.append(np.ascontiguousarray(array, np.float32))
                if extractor.input(self._inner.get(spec.name, spec.name), self._ncnn.Mat(kept[-1])):
                    return None
            answers = {}
            for name in names:
                code, found = extractor.extract(self._inner.get(name, name))
                if code:
                    return None
                answers[name] = np.array(found)
            return answers

    def close(self) -> None:
        """Free the model."""
        self._net.clear()

    def _answers(self, feeds: Mapping[str, Array], outputs: Sequence[str], row: int) -> list[Array]:
        found = self.blobs(feeds, outputs, row)
        if found is None:
            raise RequestError(
                "the model does not take this request",
                "ncnn gave no answer; its reason is in the server's output",
                "Check its values against the model",
            )
        return [found[name] for name in outputs]


def _opened(canonical: Canonical, folder: Path) -> NcnnRunner | None:
    try:
        return NcnnRunner(canonical, folder, 1, ())
    except EngineError:
        return None  # what it printed says more


def _is_batched(signature: Signature) -> bool:
    """Whether the first dimension of each input is a batch, which ncnn itself has not got."""
    return all(spec.shape and spec.shape[0] is None for spec in signature.inputs)


def _mismatch(layer: Layer, shape: tuple[int, ...]) -> str | None:
    """What the layer's weights are for, if that is not what it gets."""
    match layer.kind:
        case "InnerProduct":
            wanted = layer.number(2) // max(1, layer.number(0))
            rows = len(shape) == 2 and shape[1] == wanted
            return None if rows or int(np.prod(shape)) == wanted else f"its weights are for {wanted} values"
        case "Convolution" | "Deconvolution" | "ConvolutionDepthWise" | "DeconvolutionDepthWise":
            area = layer.number(1) * layer.number(11, layer.number(1))
            groups = layer.number(7, 1) if "DepthWise" in layer.kind else 1
            wanted = layer.number(6) * groups // max(1, layer.number(0) * area)
            return None if len(shape) == 3 and shape[0] == wanted else f"its weights are for {wanted} channels"
        case "Convolution1D":
            wanted = layer.number(6) // max(1, layer.number(0) * layer.number(1))
            return None if len(shape) == 2 and shape[0] == wanted else f"its weights are for {wanted} channels"
        case "LSTM" | "GRU" | "RNN":
            ways = 2 if layer.number(2) == 2 else 1
            hidden = layer.number(3) or layer.number(0)
            wanted = layer.number(1) // max(1, ways * hidden * _GATES[layer.kind])
            return None if len(shape) == 2 and shape[1] == wanted else f"its weights are for {wanted} values a step"
        case "BatchNorm" | "InstanceNorm":
            wanted = layer.number(0)
            return None if not wanted or shape[0] == wanted else f"it is for {wanted} channels"
    return None


def _require_shape(spec: TensorSpec, array: Array) -> None:
    shape = spec.shape or ()
    sizes = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or 0 in array.shape or any(size not in (None, mine) for mine, size in sizes):
        open_shape = [-1 if size is None else size for size in shape]
        raise RequestError(
            "the model does not take this request",
            f'input "{spec.name}" has shape {list(array.shape)} and the model takes {open_shape}',
            "Check its shapes against the model",
        )


def _refused(canonical: Canonical, lines: Sequence[str]) -> EngineError:
    return EngineError(
        f"{canonical.label}: ncnn {importlib.metadata.version('ncnn')} refuses the model",
        "; ".join(dict.fromkeys(lines[-_MOST_LINES:]))[:400] or "it gave no reason",
        "Copy both files again, completely, or convert the model again",
    )
