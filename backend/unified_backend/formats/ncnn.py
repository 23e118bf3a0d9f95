"""ncnn's models: a text with the graph (`.param`), and a file of weights beside it (`.bin`)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, as_asked, telling
from unified_backend.formats.excerpts import excerpt
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["MAGIC", "Graph", "Layer", "Ncnn", "graph_of"]

MAGIC = b"7767517"
_MOST_BYTES = 64 * 2**20  # a line a layer: hundreds of thousands of them
_AGAIN = "Copy both files again, completely, or convert the model again"
_NO_WEIGHTS = frozenset({"Input", "Split", "ReLU", "Softmax", "Pooling", "Sigmoid", "TanH", "Reshape", "Flatten"})
# What a converter of ncnn's writes for networks of images and sequences, and was seen to be right; attention was not.
# `Embed` reads integers out of arrays of floats.
_KNOWN = (
    "BatchNorm Bias BinaryOp Clip Concat Convolution Convolution1D ConvolutionDepthWise Crop Deconvolution "
    "DeconvolutionDepthWise Dropout ELU Eltwise Exp ExpandDims Flatten GELU GRU GroupNorm HardSigmoid HardSwish "
    "InnerProduct Input InstanceNorm Interp LRN LSTM LayerNorm Log MemoryData Mish Noop Normalize PReLU Padding "
    "Permute PixelShuffle Pooling Pooling1D Power RNN ReLU Reduction Reshape Scale Selu ShuffleChannel Sigmoid Slice "
    "Softmax Split Squeeze Swish TanH UnaryOp"
)
_LAYERS = frozenset(_KNOWN.split())


@dataclasses.dataclass(frozen=True)
class Layer:
    """A line: the layer's type and name, the blobs that it takes and gives, and its parameters by their numbers."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[int, str]

    def number(self, key: int, default: int = 0) -> int:
        """A parameter that is a whole number.

        Raises:
            ValueError: it is none.
        """
        return int(self.parameters.get(key, str(default)))


@dataclasses.dataclass(frozen=True)
class Graph:
    """What a file says: its layers, and the blobs that go in and come out, in order."""

    layers: tuple[Layer, ...]

    @property
    def inputs(self) -> tuple[Layer, ...]:
        """Layers of type Input."""
        return tuple(layer for layer in self.layers if layer.kind == "Input")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Blobs that no layer takes."""
        taken = {blob for layer in self.layers for blob in layer.inputs}
        return tuple(blob for layer in self.layers for blob in layer.outputs if blob not in taken)


class Ncnn:
    """The ncnn format."""

    name = "ncnn"

    def detect(self, path: Path) -> bool:
        """Whether the text begins with ncnn's number on a line of its own."""
        with path.open("rb") as file:
            return file.read(len(MAGIC) + 2).split(b"\n")[0].strip() == MAGIC

    def companions(self, path: Path) -> list[str]:
        """The file of weights: the model's name with `.bin`."""
        weights = path.with_suffix(".bin")
        alone = not weights.is_file() and all(layer.kind in _NO_WEIGHTS for layer in graph_of(path).layers)
        return [] if alone else [weights.name]

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file says; the shape of an input is in it only if whoever made it gave one.

        Raises:
            SourceError: it is damaged, or has layers that cannot be served.
            ConfigError: a parameter names what the model has not got.
        """
        graph = graph_of(path)
        counts = Counter(layer.kind for layer in graph.layers)
        facts = {"operators": dict(counts.most_common())}
        with telling(facts):
            if other := sorted(set(counts) - _LAYERS):
                raise SourceError(
                    f"{label}: the ncnn model cannot be served",
                    f"of its layers {', '.join(map(excerpt, other))} it is not known that ncnn computes them rightly",
                    "Convert the model that it was made from to ONNX, and serve that",
                )
            try:
                inputs = tuple(_input(layer) for layer in graph.inputs)
            except ValueError as error:
                raise _damaged(path, str(error)) from None
            outputs = tuple(TensorSpec(name, "FP32", None) for name in graph.outputs)
            if not inputs or not outputs:
                raise _damaged(path, f"it has {len(inputs)} inputs and {len(outputs)} outputs")
        unstated = tuple(spec.name for spec in inputs if spec.shape is None)
        described = Description(inputs, outputs, facts=facts, unstated=unstated)
        # Of an input without a shape the parameter `inputs` is read later, with its type.
        return as_asked(described, dataclasses.replace(settings, inputs=()) if unstated else settings, label)


def graph_of(path: Path) -> Graph:
    """What the file says.

    Raises:
        SourceError: it is damaged.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise _damaged(path, f"it is larger than {_MOST_BYTES >> 20} MiB, which no graph is")
    lines = [line.split() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    try:
        stated = int(lines[1][0])
        layers = tuple(_layer(words) for words in lines[2:])
    except (IndexError, ValueError) as error:
        raise _damaged(path, excerpt(error)) from None
    if len(layers) != stated:
        raise _damaged(path, f"it states {stated} layers and has {len(layers)}")
    made: set[str] = set()
    for layer in layers:
        if missing := [blob for blob in layer.inputs if blob not in made]:
            raise _damaged(
                path, f"the layer {excerpt(layer.name)} takes {excerpt(missing[0])}, which none before it gives"
            )
        made.update(layer.outputs)
    return Graph(layers)


def _layer(words: list[str]) -> Layer:
    kind, name, taken, given = words[0], words[1], int(words[2]), int(words[3])
    blobs = words[4 : 4 + taken + given]
    if taken < 0 or given < 0 or len(blobs) != taken + given:
        raise ValueError(f"the layer {name} lacks blobs")
    pairs = (word.partition("=") for word in words[4 + taken + given :])
    return Layer(kind, name, tuple(blobs[:taken]), tuple(blobs[taken:]), {int(key): value for key, _, value in pairs})


def _input(layer: Layer) -> TensorSpec:
    """An input: width, height, depth and channels, those that it has; ncnn itself has no batch."""
    width, height, depth, channels = (layer.number(key) for key in (0, 1, 11, 2))
    sizes = [size for size in (channels, depth, height, width) if size]
    if any(size < 0 for size in sizes) or (channels and not (height and width)):
        raise ValueError(f"the input {layer.name} is of size {sizes}")
    return TensorSpec(layer.outputs[0], "FP32", (None, *sizes) if sizes else None)


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(f"{path.name} is a damaged ncnn model", why, _AGAIN)
