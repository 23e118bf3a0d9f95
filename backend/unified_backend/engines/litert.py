"""LiteRT: TensorFlow Lite's own interpreter, for files that nothing else takes, and the reference for those it does."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_backend.conversion.tflite_file import prepared
from unified_backend.engines import Built, Canonical, Threads
from unified_backend.errors import EngineError, RequestError
from unified_backend.gpus import Gpu
from unified_backend.settings import Settings
from unified_backend.tensors import DATA_TYPES, Array, Signature, TensorSpec

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

__all__ = ["LiteRt", "LiteRtRunner"]

_RECIPE = 1  # raised when the same key fields would give other files
_MODEL = "model.tflite"
_SHAPES_KEPT = 8  # sets of input shapes with an interpreter each: to allocate one anew takes as long as several runs
_BY_NUMPY = {row.numpy: row.triton for row in DATA_TYPES if row.triton != "BF16"}


class LiteRt:
    """The LiteRT CPU rung."""

    name = "litert"
    accepts = frozenset({"tflite"})

    def unusable(self, gpu: Gpu | None) -> str | None:
        """Why LiteRT cannot be used here, or None."""
        if importlib.util.find_spec("ai_edge_litert") is None:
            return "the package ai-edge-litert is not installed"
        return None

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """LiteRT's version."""
        return {"litert": importlib.metadata.version("ai-edge-litert"), "recipe": _RECIPE}

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Keep a copy of the file, with the graph that is served first, once the interpreter was seen to take it.

        Raises:
            EngineError: an operator that LiteRT does not have, or a damaged file.
        """
        (folder / _MODEL).write_bytes(_content(canonical))
        built = Built(folder, {})
        runner = self.load(canonical, built, settings, Threads(1))
        runner.close()
        return {}

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> LiteRtRunner:
        """Load the file, with its tensors allocated for the shapes of the signature (an open dimension is 1).

        Raises:
            EngineError: the interpreter refuses it.
        """
        content = (built.folder / _MODEL).read_bytes() if built else _content(canonical)
        return LiteRtRunner(canonical, content, threads.intra_op)


class LiteRtRunner:
    """Interpreters of one file, one for each set of input shapes in use."""

    def __init__(self, canonical: Canonical, content: bytes, threads: int) -> None:
        self._label = canonical.label
        self._content = content
        self._threads = threads
        self._kept: dict[tuple[tuple[int, ...], ...], Interpreter] = {}
        given = canonical.signature
        try:
            first = self._opened()
            inputs, outputs = first.get_input_details(), first.get_output_details()
            self._inputs = {spec.name: _detail(canonical, spec.name, inputs) for spec in given.inputs}
            self._outputs = {spec.name: _detail(canonical, spec.name, outputs) for spec in given.outputs}
            shapes = tuple(
                tuple(size if isinstance(size, int) else 1 for size in spec.shape or ()) for spec in given.inputs
            )
            self._kept[shapes] = self._allocated(first, shapes)
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"{self._label}: LiteRT refuses the model", _reason(error), "Serve it by another engine, or convert it"
            ) from None
        self.signature = Signature(given.inputs, tuple(self._output(spec) for spec in given.outputs))

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        shapes = tuple(feeds[name].shape for name in self._inputs)
        try:
            interpreter = self._kept.get(shapes) or self._for(shapes)
            for name, detail in self._inputs.items():
                interpreter.set_tensor(detail["index"], feeds[name])
            interpreter.invoke()
            arrays = []
            for name in outputs:
                array = interpreter.get_tensor(self._outputs[name]["index"])
                if into and name in into:
                    np.copyto(into[name], array)
                    array = into[name]
                arrays.append(array)
            return arrays
        except (RuntimeError, ValueError) as error:
            raise RequestError(
                "the model does not take this request", _reason(error), "Check its shapes and values against the model"
            ) from None

    def close(self) -> None:
        """Free the interpreters."""
        self._kept.clear()

    def _for(self, shapes: tuple[tuple[int, ...], ...]) -> Interpreter:
        interpreter = self._allocated(self._opened(), shapes)
        while len(self._kept) >= _SHAPES_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[shapes] = interpreter
        return interpreter

    def _opened(self) -> Interpreter:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(model_content=self._content, num_threads=self._threads)

    def _allocated(self, interpreter: Interpreter, shapes: tuple[tuple[int, ...], ...]) -> Interpreter:
        for detail, shape in zip(self._inputs.values(), shapes, strict=True):
            if tuple(detail["shape"]) != shape:
                interpreter.resize_tensor_input(detail["index"], shape)
        interpreter.allocate_tensors()
        return interpreter

    def _output(self, spec: TensorSpec) -> TensorSpec:
        """An output with the type that the interpreter gives it, and its dimensions that do not depend on a request."""
        detail = self._outputs[spec.name]
        signature = detail.get("shape_signature")
        shape = detail["shape"] if signature is None or not len(signature) else signature
        sizes: tuple[int | None, ...] = tuple(int(size) if size >= 0 else None for size in shape)
        if spec.shape is not None and len(spec.shape) == len(sizes):
            sizes = tuple(None if mine is None else size for mine, size in zip(spec.shape, sizes, strict=True))
        return TensorSpec(spec.name, _BY_NUMPY[np.dtype(detail["dtype"])], sizes)


def _content(canonical: Canonical) -> bytes:
    """The file; with the graph of the signature first, where it is another."""
    if canonical.part is None:
        return canonical.path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        return prepared(canonical.path, canonical.part, Path(folder)).path.read_bytes()


def _detail(canonical: Canonical, name: str, details: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the interpreter knows of a tensor, found by the name in the file."""
    inner = canonical.inner.get(name, name)
    for detail in details:
        if detail["name"] in (inner, name, inner.removesuffix(":0")):
            return detail
    raise EngineError(
        f"{canonical.label}: LiteRT cannot serve the model",
        f'it has no tensor "{inner}", only {", ".join(detail["name"] for detail in details)}',
        "Choose another signature",
    )


def _reason(error: Exception) -> str:
    """The interpreter's message in one line, without its source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line.partition(" ")[2] if ".cc:" in line.partition(" ")[0] else line for line in lines)[:600]
