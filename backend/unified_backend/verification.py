"""Does B still compute what A computed? Errors by output, on samples at several batch sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.engines import Runner
from unified_backend.errors import EngineError, RequestError, VerificationError
from unified_backend.samples import FixedDims, from_file, recipes
from unified_backend.tensors import Array, Signature

__all__ = [
    "BATCHES",
    "RECIPE",
    "Compared",
    "Sample",
    "answered",
    "compare",
    "read_samples",
    "require",
    "require_alive",
    "require_steady",
    "samples_of",
    "verify",
]

RECIPE = 3  # part of the keys of what was verified: raised when the same answers would be judged otherwise
BATCHES = (1, 3)  # sizes that a model with an open first dimension is tried at

# The largest error accepted, relative to the largest value of the output. Kernels sum in different orders: FP32 models
# differ by 1e-7 to 2e-4 between TensorFlow, ONNX Runtime and OpenVINO, and a wrong operator or layout by 1e-1 and more.
# Half types have 8 to 11 bits of mantissa. Integers, strings and booleans are the same or wrong.
_TOLERANCE = {"FP64": 1e-6, "FP32": 1e-3, "FP16": 2e-2, "BF16": 8e-2}
# Between engines, for what is computed in on the way. Those that run 8 bits as such round otherwise than those that go
# back to FP32 at each step: EfficientNet-Lite0 with Q/DQ differs by 4e-2 between ONNX Runtime's own two ways.
_COMPUTED_IN = {**_TOLERANCE, "QDQ": 1e-1}
_QUANTISED = ("INT8", "UINT8")  # of a quantised output, rounding may move a value by one step


@dataclasses.dataclass(frozen=True)
class Sample:
    """Inputs, and what the source answers to them.

    Attributes:
        batch: size of the first dimension; None where the model has no batch dimension.
        feeds: input name -> array.
        expected: output name -> array.
    """

    batch: int | None
    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Compared:
    """One output on one sample.

    Attributes:
        max_abs: largest absolute error; for strings and booleans, 1 where any element differs.
        max_rel: the same, relative to the largest value expected.
        mean_rel: the mean absolute error, likewise; 0 where `max_rel` is that of strings or shapes.
        cosine: of the angle between the two outputs as vectors; None for strings and empty outputs.
        top1: share of rows with the same largest element, for outputs that look like classes, [N, classes].
        tolerance: that `max_rel` was held to.
    """

    output: str
    batch: int | None
    max_abs: float
    max_rel: float
    mean_rel: float
    cosine: float | None
    top1: float | None
    tolerance: float
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: an error that is no number is written as a string."""
        values = dataclasses.asdict(self)
        return {
            name: str(value) if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in values.items()
        }


def verify(
    runner: Runner,
    samples: Sequence[Sample],
    tolerance: float | None = None,
    quantised: Sequence[str] = (),
    computed_in: str = "FP32",
) -> list[Compared]:
    """Run the samples and compare every answer.

    Args:
        runner: what is judged.
        tolerance: in place of the default of each output's type.
        quantised: names of outputs that hold quantised values.
        computed_in: the coarsest type inside the model, which outputs of finer types are rounded to on their way; `QDQ`
            for 8 bits.

    Raises:
        VerificationError: it does not run on a sample, or lacks an output.
    """
    rows = []
    for sample in samples:
        specs = {spec.name: spec for spec in runner.signature.outputs}
        names = list(sample.expected)
        if missing := [name for name in names if name not in specs]:
            raise VerificationError(
                f"output {missing[0]} is missing",
                f"the source has it, and what was made of it has {', '.join(specs)}",
                "Report the model's format and its exporter",
            )
        try:
            answers = runner.run(sample.feeds, names)
        except (RequestError, EngineError) as error:
            at = "" if sample.batch is None else f" at batch {sample.batch}"
            raise VerificationError(
                f"a sample does not run{at}",
                f"the source answers it, and what was made of it says: {error.why}",
                "Give inputs that the model takes as samples/NAME.npz beside the version folders, if these are none",
            ) from None
        for name, answer in zip(names, answers, strict=True):
            dtype = specs[name].dtype
            limit = tolerance
            if limit is None and dtype in _TOLERANCE:
                limit = max(_TOLERANCE[dtype], _COMPUTED_IN[computed_in])
            rows.append(compare(name, sample.batch, dtype, sample.expected[name], answer, limit, name in quantised))
    return rows


def compare(
    output: str,
    batch: int | None,
    dtype: str,
    expected: Array,
    answer: Array,
    tolerance: float | None = None,
    quantised: bool = False,
) -> Compared:
    """How far an answer is from the one expected.

    Args:
        dtype: Triton's name; BF16 arrays hold the bits as uint16.
        tolerance: largest error relative to the largest value; None for the default of the type.
        quantised: an error of one step is rounding.
    """
    limit = _TOLERANCE.get(dtype, 0.0) if tolerance is None else tolerance
    if expected.shape != answer.shape:
        return Compared(output, batch, float("inf"), float("inf"), 0.0, None, None, limit, passed=False)
    if dtype in ("STRING", "BOOL"):
        same = bool(np.array_equal(_texts(expected), _texts(answer)))
        return Compared(output, batch, float(not same), float(not same), 0.0, None, None, limit, same)
    one, other = (_numbers(array, dtype) for array in (expected, answer))
    unequal = (one != other) & ~(np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        worst = float(np.nan_to_num(np.abs(one - other)[unequal], nan=np.inf).max(initial=0.0))
    largest = float(np.abs(one[np.isfinite(one)]).max(initial=0.0))
    relative = worst / largest if largest else (0.0 if worst == 0 else float("inf"))
    # An output of nothing but rounding noise has no scale of its own.
    noise = dtype.startswith("FP") and worst <= limit * 1e-3
    passed = relative <= limit or noise or (quantised and dtype in _QUANTISED and worst <= 1)
    with np.errstate(invalid="ignore"):
        mean = float(np.nanmean(np.abs(one - other))) / largest if largest and one.size else 0.0
    return Compared(output, batch, worst, relative, mean, _cosine(one, other), _top1(one, other), limit, passed)


def require(rows: Sequence[Compared], reference: str, what: str) -> None:
    """Refuse what does not compute what its reference does.

    Args:
        reference: whose answers were expected, for the message.
        what: was judged, for the message.

    Raises:
        VerificationError: a row did not pass; names the worst output and what would relax it.
    """
    failed = [row for row in rows if not row.passed]
    if not failed:
        return
    worst = max(failed, key=lambda row: row.max_rel)
    at = "" if worst.batch is None else f" at batch {worst.batch}"
    raise VerificationError(
        f"{what} differs from {reference}",
        f"output {worst.output}{at} is off by {worst.max_abs:.2g}, {worst.max_rel:.2g} of its largest value, and "
        f"{worst.tolerance:.2g} is accepted",
        'Set parameter "tolerance" to accept more, or "verify" to "warn" to serve it all the same',
    )


def require_steady(runner: Runner, sample: Sample, tolerance: float | None = None) -> None:
    """Refuse what answers otherwise when it is asked again: nothing can be proven of it.

    Raises:
        VerificationError: an output of the second run differs from the first one's; names it.
    """
    names = [spec.name for spec in runner.signature.outputs]
    one, other = (runner.run(sample.feeds, names) for _ in range(2))
    for spec, first, second in zip(runner.signature.outputs, one, other, strict=True):
        row = compare(spec.name, sample.batch, spec.dtype, first, second, tolerance)
        if not row.passed:
            raise VerificationError(
                "the model answers otherwise each time",
                f"output {spec.name} of two runs on the same input differs by {row.max_abs:.2g}: it is random by "
                "design, or keeps a state",
                'Set parameter "verify" to "warn" to serve it all the same, unproven',
            )


def require_alive(runner: Runner, samples: Sequence[Sample]) -> None:
    """Refuse what answers every input with the same zeros or no numbers, as runtimes do that lack an operator.

    Raises:
        VerificationError: an output does so; names it.
    """
    names = [spec.name for spec in runner.signature.outputs if spec.dtype.startswith("FP")]
    answers = []
    for sample in samples[:1]:
        others = {name: np.flip(array).copy() for name, array in sample.feeds.items()}
        try:
            answers = [runner.run(feeds, names) for feeds in (sample.feeds, others)]
        except (RequestError, EngineError):
            return  # it does not take those values in another order, which says nothing of its answers
    if not answers:
        return
    for name, one, other in zip(names, *answers, strict=False):
        if one.size and np.array_equal(one, other, equal_nan=True) and (not one.any() or not np.isfinite(one).any()):
            raise VerificationError(
                "the model gives no answer",
                f"output {name} is nothing but {'no number' if one.any() else 'zeros'}, for two inputs that differ",
                "Give inputs that the model answers as samples/NAME.npz beside the version folders, or set parameter "
                '"verify" to "warn"',
            )


def samples_of(runner: Runner, fixed: FixedDims, given: Sequence[Path] = ()) -> list[Sample]:
    """Inputs that a runner takes, with its answers.

    Args:
        given: the user's samples; in place of seeded ones, which are at several batch sizes where the first dimension
            of each input is open.

    Returns:
        nothing where no seeded input runs.

    Raises:
        ConfigError: a sample of the user's does not fit the model.
        RequestError: it does not run on it.
    """
    signature = runner.signature
    if given:
        return [answered(runner, from_file(path, signature), None) for path in given]
    for recipe in recipes(signature, fixed, 1 if _open_batch(signature) else None):
        try:
            sizes = BATCHES if _open_batch(signature) else (None,)
            return [
                answered(runner, recipe.feeds(signature, fixed, size, seed), size) for seed, size in enumerate(sizes)
            ]
        except (RequestError, EngineError):
            continue
    return []


def read_samples(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """The samples that a worker wrote: `.npz` files in `folder`, as the rows of its result name them."""
    samples = []
    for row in rows:
        with np.load(folder / row["file"], allow_pickle=False) as arrays:
            feeds, expected = (
                {name: _plain(arrays[key]) for name, key in row[side].items()} for side in ("inputs", "outputs")
            )
        samples.append(Sample(row["batch"], feeds, expected))
    return samples


def answered(runner: Runner, feeds: Mapping[str, Array], batch: int | None) -> Sample:
    """Inputs with the answers of a runner; `batch` as `Sample` has it."""
    names = [spec.name for spec in runner.signature.outputs]
    return Sample(batch, feeds, dict(zip(names, runner.run(feeds, names), strict=True)))


def _open_batch(signature: Signature) -> bool:
    specs = (*signature.inputs, *signature.outputs)
    return bool(signature.inputs) and all(spec.shape and not isinstance(spec.shape[0], int) for spec in specs)


def _plain(array: Array) -> Array:
    """Strings as engines take them: an object array of str."""
    return _texts(array.astype(object)) if array.dtype.kind in "SU" else array


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _texts(array: Array) -> Array:
    return np.vectorize(_text, otypes=[object])(array) if array.dtype.kind in "OSU" and array.size else array


def _numbers(array: Array, dtype: str) -> Array:
    if dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, np.float64)


def _cosine(one: Array, other: Array) -> float | None:
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    if not np.isfinite(norms) or norms == 0:
        return None
    return float(np.dot(one.ravel(), other.ravel()) / norms)


def _top1(one: Array, other: Array) -> float | None:
    if one.ndim != 2 or one.shape[1] < 2 or not one.shape[0]:
        return None
    return float(np.mean(one.argmax(axis=1) == other.argmax(axis=1)))
