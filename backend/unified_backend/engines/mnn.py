"""MNN on the CPU: runs its own files, which no other engine reads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.engines import Built, Canonical, Threads
from unified_backend.engines.printed import printed
from unified_backend.errors import EngineError, RequestError
from unified_backend.formats.mnn import EXTERNAL, net_of
from unified_backend.gpus import Gpu
from unified_backend.samples import Recipe, recipes
from unified_backend.settings import Settings
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["MnnEngine", "MnnRunner"]

_RECIPE = 1  # raised when the same key fields would give other files
_MODEL = "model.mnn"
# It goes on without what it lacks, and says so on standard output only.
_UNSUPPORTED = re.compile(r"not support|unsupport|don't support|doesn't support|can't find", re.IGNORECASE)
_MOST_LINES = 4
_TRITON = {np.dtype(np.float32): "FP32", np.dtype(np.int32): "INT32", np.dtype(np.uint8): "UINT8"}


class MnnEngine:
    """The MNN CPU rung."""

    name = "mnn"
    accepts = frozenset({"mnn"})

    def unusable(self, gpu: Gpu | None) -> str | None:
        """Why MNN cannot be used here, or None."""
        if importlib.util.find_spec("MNN") is None:
            return "the package mnn is not installed: pip install 'triton-unified-backend[direct]', or mnn itself"
        return None

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """MNN's version."""
        return {"mnn": importlib.metadata.version("mnn"), "recipe": _RECIPE}

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Keep a copy of the file, once it was seen to answer; what its outputs are is told by the answers.

        Raises:
            EngineError: MNN does not read it, does not run it, or says that it lacks an operator.
        """
        shutil.copyfile(canonical.path, folder / _MODEL)
        beside = canonical.path.with_name(canonical.path.name + EXTERNAL)
        if beside.is_file():
            shutil.copyfile(beside, folder / (_MODEL + EXTERNAL))
        with printed() as lines:
            try:
                module = _Module(canonical, folder / _MODEL, 1)
            except SystemError:
                module = None
        if module is None:
            raise _refused(canonical, lines, "the file is damaged, or newer than this version")
        outputs = _outputs(canonical, module, lines)
        return {"outputs": Signature((), outputs).to_json()["outputs"]}

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> MnnRunner:
        """Load the file.

        Raises:
            EngineError: MNN does not read it.
        """
        if built is None:
            raise EngineError(
                f"{canonical.label}: MNN cannot serve the model",
                "no disk has room for what a run in a process of its own found out",
                "Give the cache more room (TRITON_UNIFIED_CACHE_MAX_SIZE)",
            )
        try:
            module = _Module(canonical, built.folder / _MODEL, threads.intra_op)
        except SystemError as error:
            raise _refused(canonical, [], str(error)) from None
        rows = Signature.from_json({"inputs": [], "outputs": built.facts["outputs"]}).outputs
        by_name = {spec.name: spec for spec in rows}
        return MnnRunner(module, tuple(by_name[spec.name] for spec in canonical.signature.outputs))


class MnnRunner:
    """A loaded file that answers requests."""

    def __init__(self, module: _Module, outputs: tuple[TensorSpec, ...]) -> None:
        self._module = module
        self.signature = Signature(module.inputs, outputs)

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The outputs asked for, in that order; see `Runner.run`."""
        answers = self._module.answers(feeds)
        if answers is None:
            raise RequestError(
                "the model does not take this request",
                "MNN gave no answer; its reason is in the server's output",
                "Check its shapes and values against the model",
            )
        arrays = []
        for name in outputs:
            array = answers[name]
            if into and name in into:
                np.copyto(into[name], array)
                array = into[name]
            arrays.append(array)
        return arrays

    def close(self) -> None:
        """Free the module."""
        self._module.close()


class _Module:
    """MNN's own object for a file, with arrays going in and coming out under the names served."""

    def __init__(self, canonical: Canonical, path: Path, threads: int) -> None:
        """
        Raises:
            SystemError: MNN refuses the file.
        """
        import MNN

        self.label = canonical.label
        self.inputs = canonical.signature.inputs
        self._names = [spec.name for spec in canonical.signature.outputs]
        self._layouts = [
            net_of(path).layouts.get(canonical.inner.get(spec.name, spec.name), "NCHW") for spec in self.inputs
        ]
        inputs, outputs = (
            [canonical.inner.get(spec.name, spec.name) for spec in side]
            for side in (canonical.signature.inputs, canonical.signature.outputs)
        )
        self._expr = MNN.expr
        high = MNN.expr.PrecisionMode.High  # float32, where a CPU with smaller floats would be used by default
        self._loaded: Any = MNN.nn.load_module_from_file(
            str(path), inputs, outputs, thread_num=max(1, threads), precision_mode=high
        )

    def answers(self, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        """Output name -> array; None if MNN does not take these shapes.

        Raises:
            RequestError: an input has another shape than the model's, which MNN itself does not always notice.
            EngineError: an output's type is none that arrays have.
        """
        values = []
        for spec, layout in zip(self.inputs, self._layouts, strict=True):
            array = feeds[spec.name]
            _require_shape(spec, array)
            values.append(self._value(np.asarray(array, order="C"), layout))
        found = self._loaded.onForward(values)
        if len(found) != len(self._names):
            return None
        return {name: self._array(name, value) for name, value in zip(self._names, found, strict=True)}

    def close(self) -> None:
        """Let go of it."""
        self._loaded = None

    def _value(self, array: Array, layout: str) -> Any:
        expr = self._expr
        kind = {"f": expr.float, "i": expr.int, "u": expr.uint8}[array.dtype.kind]
        value = expr.const(array, list(array.shape), expr.NHWC if layout == "NHWC" else expr.NCHW, kind)
        return expr.convert(value, expr.NC4HW4) if layout == "NC4HW4" and array.ndim == 4 else value

    def _array(self, name: str, value: Any) -> Array:
        expr = self._expr
        if value.data_format == expr.NC4HW4:
            value = expr.convert(value, expr.NCHW)
        try:
            array = np.array(value.read())
        except SystemError:
            array = np.empty(0, object)
        if array.dtype not in _TRITON:
            raise EngineError(
                f"{self.label}: MNN cannot serve the model",
                f'output "{name}" is of a type that its Python interface has no arrays of',
                "Convert the model with outputs of type float, int32 or uint8",
            )
        return array


def _outputs(canonical: Canonical, module: _Module, said: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The outputs as they come in runs of several shapes: a dimension that is always the same is the model's own.

    Raises:
        EngineError: no run gives an answer, or one only says that it does.
    """
    given = canonical.signature.inputs
    batched = all(spec.shape and not isinstance(spec.shape[0], int) for spec in given)
    sizes = (1, 2) if batched else (None,)
    runs: list[dict[str, Array]] = []
    lines = list(said)
    tried: set[int] = set()
    for recipe, batch in _attempts(canonical.signature, sizes):
        if recipe.free not in tried:
            if len(tried) == 2:
                break
            if any(max(recipe.free, size) < 2 * min(recipe.free, size) for size in tried):
                continue  # an output that is a 32nd of its input is 2 at 48 and at 64
        with printed() as now:
            answers = module.answers(recipe.feeds(canonical.signature, {}, batch, seed=batch or 0))
        if bad := [line for line in (*said, *now) if _UNSUPPORTED.search(line)]:
            raise _refused(canonical, bad, "it lacks an operator")
        if answers is None:
            lines = now
            if batch == 2 and recipe.free in tried:
                raise _refused(canonical, now, "it runs at batch 1 and fails at batch 2")
            continue
        tried.add(recipe.free)
        runs.append(answers)
    if not runs:
        raise _refused(canonical, lines, "no seeded input ran")
    sizes_open = (size for spec in given for size in (spec.shape or ())[int(batched) :])
    varied = len(tried) > 1 or all(isinstance(size, int) for size in sizes_open)
    return tuple(_spec(spec.name, [run[spec.name] for run in runs], varied) for spec in canonical.signature.outputs)


def _attempts(signature: Signature, sizes: Sequence[int | None]) -> Iterator[tuple[Recipe, int | None]]:
    """Recipes, each at every size of a batch."""
    for recipe in recipes(signature, {}, sizes[0]):
        yield from ((recipe, size) for size in sizes)


def _spec(name: str, arrays: Sequence[Array], varied: bool) -> TensorSpec:
    """The output; where all runs had inputs of one size, no dimension is known to be the model's own."""
    shapes = [array.shape for array in arrays]
    dtype = _TRITON[arrays[0].dtype]
    if len({len(shape) for shape in shapes}) > 1:
        return TensorSpec(name, dtype, None)
    own = (each[0] if varied and len(set(each)) == 1 else None for each in zip(*shapes, strict=True))
    return TensorSpec(name, dtype, tuple(own))


def _require_shape(spec: TensorSpec, array: Array) -> None:
    shape = spec.shape
    if shape is None:
        return
    fits = array.ndim == len(shape) and 0 not in array.shape
    if not fits or any(isinstance(size, int) and size != mine for mine, size in zip(array.shape, shape, strict=True)):
        open_shape = [size if isinstance(size, int) else -1 for size in shape]
        raise RequestError(
            "the model does not take this request",
            f'input "{spec.name}" has shape {list(array.shape)} and the model takes {open_shape}',
            "Check its shapes against the model",
        )


def _refused(canonical: Canonical, lines: Sequence[str], why: str) -> EngineError:
    said = "; ".join(dict.fromkeys(lines[-_MOST_LINES:]))[:400]
    return EngineError(
        f"{canonical.label}: MNN {importlib.metadata.version('mnn')} refuses the model",
        f"{why}: {said}" if said else why,
        "Copy or convert it again, or serve the model that it was made from",
    )
