"""Calibration data: inputs that a model's user has seen, as its network takes them."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified_backend.cache import FileMemo
from unified_backend.engines import Runner
from unified_backend.errors import ConfigError, EngineError, RequestError
from unified_backend.samples import fitting, from_file
from unified_backend.stages.parts import Before
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["FOLDER", "calibration_files", "read_calibration", "read_requests"]

logger = logging.getLogger(__name__)

FOLDER = "calibration"
_ADVISED = 8  # rows; fewer say little of the ranges that service sees
_DO = (
    f"Put inputs that the model sees in service into a folder {FOLDER} beside the version folders, some tens of them: "
    ".npz files with an array under each input's name, .npy files, requests as JSON, or where a stage comes before the "
    "model the images and sounds themselves; or name another folder with the parameter `calibration`"
)


def calibration_files(label: str, model_dir: Path, named: str | None, memo: FileMemo) -> tuple[tuple[Path, str], ...]:
    """The files of calibration data, each with the digest of its bytes; none where there is no folder.

    Args:
        model_dir: the model's directory.
        named: the parameter `calibration`: a folder, which a relative path names in the model's directory.

    Raises:
        ConfigError: the folder that is named is not there, or holds no file.
    """
    folder = model_dir / named if named else model_dir / FOLDER
    found = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    files = [path for path in found if path.is_file() and not path.name.startswith(".")]
    if not files and (named or folder.is_dir()):
        raise ConfigError(
            f"{label}: there is no calibration data",
            f"the folder {named or FOLDER} {'holds no file' if folder.is_dir() else 'is not there'}",
            _DO,
        )
    return tuple((path, memo.digest(path)) for path in files)


def read_calibration(
    label: str, files: Sequence[Path], signature: Signature, before: Before | None, runner: Runner
) -> list[dict[str, Array]]:
    """The network's inputs, one batch for each file.

    Args:
        signature: of the network.
        before: the stage before it, which raw files go through.
        runner: the network, which has to answer each batch.

    Raises:
        ConfigError: there are none, they are all the same, or one cannot be used; names the file, and the input.
    """
    if not files:
        raise ConfigError(f"{label}: there is no calibration data", "a precision of eight bits needs some", _DO)
    found = []
    for path in files:
        try:
            feeds = [_read(path, signature, before)] if path.suffix != ".json" else read_requests(path, signature)
        except ConfigError as error:
            what = error.what.replace("the sample", "the calibration data")
            raise ConfigError(f"{label}: {what}", error.why, error.do) from None
        for one in feeds:
            _require_numbers(label, path, one)
            _require_answer(label, path, one, runner)
        found += feeds
    _require_differences(label, found)
    rows = sum(max((len(array) for array in one.values() if array.ndim), default=1) for one in found)
    if rows < _ADVISED:
        logger.warning("little calibration data model=%s rows=%d advised=some tens, %d at least", label, rows, _ADVISED)
    return found


def _read(path: Path, signature: Signature, before: Before | None) -> dict[str, Array]:
    if path.suffix == ".npz":
        return from_file(path, signature)
    if path.suffix == ".npy":
        if len(signature.inputs) != 1:
            names = ", ".join(spec.name for spec in signature.inputs)
            raise _unusable(path, f"the model has the inputs {names}, and a .npy file is one", "Save an .npz file")
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _unusable(path, str(error).splitlines()[0][:200], "Save it with numpy.save") from None
        (spec,) = signature.inputs
        return {spec.name: fitting(array, spec, path.name)}
    return _staged(path, signature, before)


def _staged(path: Path, signature: Signature, before: Before | None) -> dict[str, Array]:
    """What the stage before the network makes of a raw file."""
    if before is None:
        do = "Give .npz, .npy or .json files, or set the parameter `preprocess`"
        raise _unusable(path, "it is no file of tensors, and the model has no stage that would make some of it", do)
    given, made = before.stage.signature.inputs, set(before.feeds.values())
    missing = [spec.name for spec in signature.inputs if spec.name not in made]
    if len(given) != 1 or missing:
        why = f"the stage before the network takes {len(given)} inputs" if len(given) != 1 else ""
        why = why or f"the stage does not make the network's input {missing[0]}"
        raise _unusable(path, why, "Give .npz files with the network's inputs")
    content = np.array([[path.read_bytes()]], object)
    try:
        rows = before.stage.run({given[0].name: content})
    except RequestError as error:
        raise _unusable(path, error.why, "Take it away, or replace it") from None
    if rows.failed:
        raise _unusable(path, rows.failed[0].why, "Take it away, or replace it")
    return {into: np.ascontiguousarray(rows.arrays[name]) for name, into in before.feeds.items()}


def read_requests(path: Path, signature: Signature) -> list[dict[str, Array]]:
    """Requests as Triton's HTTP interface takes them, or the rows of perf_analyzer's `--input-data`.

    Raises:
        ConfigError: it is neither, or does not fit the signature.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if "inputs" in content:
            _require_known([one["name"] for one in content["inputs"]], signature)
            return [{spec.name: _tensor(path, content["inputs"], spec) for spec in signature.inputs}]
        rows = content["data"]
        if not rows:
            raise ValueError("it has no rows")
        _require_known([name for row in rows for name in row], signature)
        return [{spec.name: _row(path, row, spec) for spec in signature.inputs} for row in rows]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0][:200]
        do = (
            'Write {"inputs": [{"name", "datatype", "shape", "data"}]}, or perf_analyzer\'s {"data": [{input: values}]}'
        )
        raise _unusable(path, why, do) from None


def _tensor(path: Path, inputs: Sequence[Mapping[str, Any]], spec: TensorSpec) -> Array:
    one = next((one for one in inputs if one["name"] == spec.name), None)
    if one is None:
        raise ValueError(f"it has no input {spec.name}")
    datatype = one.get("datatype", spec.dtype)
    if datatype != spec.dtype and (datatype, spec.dtype) != ("BYTES", "STRING"):
        raise ValueError(f"{spec.name} is {datatype}, and the model takes {spec.dtype}")
    return fitting(_values(one["data"], spec).reshape(one["shape"]), spec, path.name)


def _row(path: Path, row: Mapping[str, Any], spec: TensorSpec) -> Array:
    value = row[spec.name]
    shape = [size for size in (spec.shape or ())[1:] if isinstance(size, int)]
    if isinstance(value, dict):
        shape = list(value.get("shape", shape))
        value = value["content"]
        if isinstance(value, dict):
            content = base64.b64decode(value["b64"])
            if spec.dtype == "STRING":
                strings = np.array(_strings(content), object).reshape(shape)
                return strings[None] if spec.shape and strings.ndim == len(spec.shape) - 1 else strings
            return _batch(np.frombuffer(content, spec.numpy).reshape(shape), spec, path)
    return _batch(_values(value, spec).reshape(shape or -1), spec, path)


def _strings(content: bytes) -> list[bytes]:
    """Those that lie one after another, each with its length before it in four bytes."""
    found = []
    while content:
        size = int.from_bytes(content[:4], "little")
        found.append(content[4 : 4 + size])
        content = content[4 + size :]
    return found


def _values(given: Any, spec: TensorSpec) -> Array:
    """
    Raises:
        ValueError: the input's type does not hold them.
    """
    found = np.array(given)
    if spec.dtype == "STRING":
        return found
    with np.errstate(invalid="ignore"):
        made = found.astype(spec.numpy)
    if made.dtype.kind != "f" and not np.array_equal(found, made):
        raise ValueError(f"{spec.name} has values that {spec.dtype} does not hold")
    return made


def _require_known(names: Sequence[str], signature: Signature) -> None:
    """
    Raises:
        ValueError: the model has no input of such a name.
    """
    own = [spec.name for spec in signature.inputs]
    if unknown := [name for name in names if name not in own]:
        raise ValueError(f"the model has no input {unknown[0]}; its inputs are {', '.join(own)}")


def _batch(array: Array, spec: TensorSpec, path: Path) -> Array:
    """With the batch dimension that perf_analyzer's rows have not got."""
    return fitting(array[None] if spec.shape and array.ndim == len(spec.shape) - 1 else array, spec, path.name)


def _require_answer(label: str, path: Path, feeds: Mapping[str, Array], runner: Runner) -> None:
    what = f"{label}: the calibration data {path.name} cannot be used"
    if any(array.shape[:1] == (0,) for array in feeds.values()):
        raise ConfigError(what, "it has no rows", "Take it away, or fill it")
    try:
        runner.run(feeds, [spec.name for spec in runner.signature.outputs])
    except (RequestError, EngineError) as error:
        raise ConfigError(what, f"the model does not answer it: {error.why}", "Correct it") from None


def _require_differences(label: str, found: Sequence[Mapping[str, Array]]) -> None:
    """Values that are all the same have no range."""
    for name in found[0]:
        arrays = [one[name] for one in found if one[name].dtype.kind == "f" and one[name].size]
        if arrays and all((array == arrays[0].flat[0]).all() for array in arrays):
            raise ConfigError(
                f"{label}: the calibration data cannot be used",
                f"all values of {name} are {arrays[0].flat[0]:g}, which tells no range",
                "Give inputs that the model sees in service",
            )


def _require_numbers(label: str, path: Path, feeds: Mapping[str, Array]) -> None:
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise ConfigError(
                f"{label}: the calibration data {path.name} cannot be used",
                f"{count} of the {array.size} values of {name} are NaN or infinite",
                "Take it away, or correct what made it",
            )


def _unusable(path: Path, why: str, do: str) -> ConfigError:
    return ConfigError(f"the calibration data {path.name} cannot be used", why, do)
