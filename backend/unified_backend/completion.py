"""config.pbtxt completed from the model: a partial config is a set of hints, and wins where the model allows it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from unified_backend.batching import Batching, Verdict
from unified_backend.errors import ConfigError
from unified_backend.samples import FixedDims
from unified_backend.tensors import Signature, TensorSpec

__all__ = ["ModelConfig", "complete", "fixed_dims"]

ModelConfig = dict[str, Any]
_SCHEDULERS = ("dynamic_batching", "sequence_batching", "ensemble_scheduling")


def complete(
    label: str,
    config: Mapping[str, Any],
    signature: Signature,
    batching: Batching,
    default_max_batch_size: int,
    max_batch_size_given: bool = False,
) -> tuple[ModelConfig, list[str]]:
    """The whole config of a model; completing a complete one changes nothing.

    Args:
        label: `model/version`, for messages.
        config: what the user wrote, as Triton's JSON form of config.pbtxt (field names as in the .proto).
        signature: the model's own inputs and outputs.
        batching: whether the model can be batched.
        default_max_batch_size: for a batchable model whose config leaves it open.
        max_batch_size_given: the user wrote `max_batch_size`, so 0 means 0 and not "left open".

    Returns:
        the config, and a note for each decision that a user may want to know about.

    Raises:
        ConfigError: the config contradicts the model; names the field, both values and the line to write.
    """
    result = copy.deepcopy(dict(config))
    notes: list[str] = []
    for side in ("input", "output"):
        _check_names(label, side, result.get(side) or [], _specs(signature, side))
    size = _max_batch_size(label, result, signature, batching, default_max_batch_size, max_batch_size_given, notes)
    result["max_batch_size"] = size
    for side in ("input", "output"):
        result[side] = _tensors(label, side, result.get(side) or [], signature, batching, size > 0)
    if size > 1 and not any(result.get(scheduler) for scheduler in _SCHEDULERS) and "dynamic_batching" not in result:
        result["dynamic_batching"] = {}
    return result, notes


def fixed_dims(config: Mapping[str, Any], signature: Signature) -> FixedDims:
    """Dimensions that the model leaves open and the config fixes: input name -> axis -> size.

    The same before and after completion, so that both sides of a load look up the same finding.
    """
    found: dict[str, dict[int, int]] = {}
    for tensor in config.get("input") or []:
        spec = next((spec for spec in signature.inputs if spec.name == tensor.get("name")), None)
        dims = _model_dims(tensor)
        if spec is None or spec.shape is None or dims is None:
            continue
        skipped = len(spec.shape) - len(dims)
        fixed = {
            axis + skipped: size
            for axis, size in enumerate(dims)
            if size >= 0 and skipped in (0, 1) and not isinstance(spec.shape[axis + skipped], int)
        }
        if fixed:
            found[spec.name] = fixed
    return found


def _max_batch_size(
    label: str,
    config: Mapping[str, Any],
    signature: Signature,
    batching: Batching,
    default: int,
    given: bool,
    notes: list[str],
) -> int:
    wanted = int(config.get("max_batch_size") or 0)
    if wanted == 0 and (given or _written_with_batch(config, signature) or any(map(config.get, _SCHEDULERS[1:]))):
        return 0
    if wanted == 1 and _fixed_at_one(signature):
        return 1
    match batching.verdict:
        case Verdict.IMPOSSIBLE if wanted > 0:
            raise ConfigError(
                f"{label}: max_batch_size is {wanted} and the model cannot be batched",
                batching.reason,
                "Write `max_batch_size: 0` and the whole shape in `dims`",
            )
        case Verdict.ROWS_DIFFER if wanted > 0:
            notes.append(f"max_batch_size {wanted} kept as configured, although {batching.reason}")
            return wanted
        case Verdict.IMPOSSIBLE | Verdict.ROWS_DIFFER:
            notes.append(f"max_batch_size 0: {batching.reason}")
            return 0
        case Verdict.UNPROVEN:
            notes.append(f"batching taken from the shapes alone: {batching.reason}")
    return wanted or default


def _written_with_batch(config: Mapping[str, Any], signature: Signature) -> bool:
    """Whether the config writes some tensor's whole shape, the batch dimension included."""
    for side in ("input", "output"):
        specs = {spec.name: spec for spec in _specs(signature, side)}
        for tensor in config.get(side) or []:
            dims, spec = _model_dims(tensor), specs[tensor["name"]]
            if dims is not None and spec.shape is not None and len(dims) == len(spec.shape):
                return True
    return False


def _fixed_at_one(signature: Signature) -> bool:
    """Whether every tensor has a first dimension of 1, which max_batch_size 1 describes as well."""
    return all(spec.shape and spec.shape[0] == 1 for spec in (*signature.inputs, *signature.outputs))


def _check_names(label: str, side: str, tensors: Sequence[Mapping[str, Any]], specs: Sequence[TensorSpec]) -> None:
    known = [spec.name for spec in specs]
    seen: set[str] = set()
    for tensor in tensors:
        name = tensor.get("name", "")
        if name not in known:
            raise ConfigError(
                f'{label}: {side} "{name}" is not in the model',
                f"the model's {side}s are {', '.join(known) or 'none'}",
                f'Write one of these, for example {side} [ {{ name: "{known[0] if known else ""}" }} ]',
            )
        if name in seen:
            raise ConfigError(f'{label}: {side} "{name}" is there twice', "names are unique", "Remove one of the two")
        seen.add(name)


def _tensors(
    label: str,
    side: str,
    written: Sequence[Mapping[str, Any]],
    signature: Signature,
    batching: Batching,
    batched: bool,
) -> list[dict[str, Any]]:
    """The user's tensors, completed, in the user's order; inputs the model needs and the user left out follow."""
    specs = {spec.name: spec for spec in _specs(signature, side)}
    completed = []
    for tensor in written:
        spec = specs[tensor["name"]]
        row = dict(tensor)
        row["data_type"] = _dtype(label, side, tensor, spec)
        own = _own_dims(spec, batching, batched)
        if spec.shape is None and spec.name not in batching.ranks:
            own = _model_dims(tensor) or own  # only the user knows
        row["dims"], reshape = _dims(label, side, tensor, own)
        if reshape is not None:
            row["reshape"] = {"shape": reshape}
        completed.append(row)
    if side == "input" or not written:
        names = {row["name"] for row in completed}
        for spec in specs.values():
            if spec.name not in names:
                dims = _own_dims(spec, batching, batched)
                row = {"name": spec.name, "data_type": spec.triton, "dims": dims}
                # Triton has no empty dims: one value a sample is served as [1] and reshaped.
                completed.append(row if dims else {**row, "dims": [1], "reshape": {"shape": []}})
    return completed


def _own_dims(spec: TensorSpec, batching: Batching, batched: bool) -> list[int]:
    """The dims that the model itself gives a tensor, without the batch dimension where there is one.

    Without a batch a scalar has the dims [1], because Triton takes neither empty dims there nor an empty reshape. A
    tensor whose rank neither the model nor a run tells has [-1].
    """
    shape = spec.dims if spec.shape else [-1] * batching.ranks.get(spec.name, 1 if spec.shape is None else 0)
    return shape[1:] if batched else shape or [1]


def _dtype(label: str, side: str, tensor: Mapping[str, Any], spec: TensorSpec) -> str:
    own = spec.triton
    written = tensor.get("data_type", "TYPE_INVALID")
    if written not in ("TYPE_INVALID", own):
        raise ConfigError(
            f'{label}: {side} "{spec.name}" has data_type {written} in config.pbtxt and {own} in the model',
            "a tensor is served in the type the model computes with",
            f"Write `data_type: {own}`",
        )
    return own


def _dims(label: str, side: str, tensor: Mapping[str, Any], own: Sequence[int]) -> tuple[list[int], list[int] | None]:
    """The dims and the reshape (None without one) of a tensor that the user wrote something of."""
    name = tensor["name"]
    seen = _model_dims(tensor)
    if seen is None:
        return (list(own), None) if own else ([1], [])
    if len(seen) != len(own) or any(
        -1 not in (mine, theirs) and mine != theirs for mine, theirs in zip(seen, own, strict=True)
    ):
        raise ConfigError(
            f'{label}: {side} "{name}" has dims {_written(seen)} in config.pbtxt and {_written(own)} in the model',
            "the sizes are not those that the model has" if len(seen) == len(own) else "the ranks differ",
            f"Write `dims: {_written(own)}`, or narrower sizes where it has -1",
        )
    narrowed = [theirs if mine == -1 else mine for mine, theirs in zip(seen, own, strict=True)]
    if "reshape" in tensor:
        return list(tensor["dims"]), list(tensor["reshape"].get("shape") or [])
    return narrowed, None


def _model_dims(tensor: Mapping[str, Any]) -> list[int] | None:
    """The dims as the model sees them: those of `reshape` if there is one; None if the user wrote none."""
    if "reshape" in tensor:
        return [int(size) for size in tensor["reshape"].get("shape") or []]
    return [int(size) for size in tensor["dims"]] if tensor.get("dims") else None


def _specs(signature: Signature, side: str) -> tuple[TensorSpec, ...]:
    return signature.inputs if side == "input" else signature.outputs


def _written(dims: Sequence[int]) -> str:
    return json.dumps(list(dims))
