"""Optimization profiles: the shapes that an engine is built for, derived from a model and its config or as written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from unified_backend.engines import Runner
from unified_backend.errors import ConfigError, EngineError, RequestError
from unified_backend.samples import FixedDims, Recipe, recipes
from unified_backend.tensorrt_options import Profile, ShapeRange
from unified_backend.tensors import Array, Signature, TensorSpec

__all__ = ["RECIPE", "bounds", "derive", "dims_inside", "fitting", "only_the_batch_varies", "ranges_of", "shapes_of"]

Range = tuple[int, int, int]
Ranges = Mapping[str, Mapping[int, Range]]
Shapes = Mapping[str, tuple[int, ...]]

# Of a dimension that neither the model nor the config fixes: smallest, best and largest. Images come between an icon
# and VGA, sequences up to what most encoders take. A wider range costs scratch memory and speed at every size.
RECIPE = 1  # raised when `ranges_of` would find others
_IMAGE = (32, 224, 640)
_IMAGES = (1, 1, 8)  # in a model that is not batched: as many as their sides are pixels took 6 GB
_SEQUENCE = (1, 128, 512)
_IMAGE_RANK = 4
_SIDES = (0, 1, 2)


def ranges_of(runner: Runner, fixed: FixedDims, batched: bool) -> dict[str, dict[int, Range]]:
    """Ranges of the dimensions that neither the model nor the config fixes, as far as the model runs in them.

    Many graphs leave a dimension open that they take one size of (a line recogniser its height), and TensorRT refuses
    a profile that holds another.

    Args:
        runner: the model, in an engine that takes any shape.

    Returns:
        input name -> axis -> range.
    """
    signature, batch = runner.signature, 1 if batched else None
    wide = {
        spec.name: {
            axis: _range(spec, axis)
            for axis, size in enumerate(spec.shape or ())
            if not isinstance(fixed.get(spec.name, {}).get(axis, size), int) and not (axis == 0 and batched)
        }
        for spec in signature.inputs
    }
    if not any(wide.values()):
        return wide
    free = next((one for one in recipes(signature, fixed, batch) if _runs(runner, one, fixed, batch)), None)
    if free is None:
        return wide

    def runs(sizes: Mapping[str, Mapping[int, int]]) -> bool:
        together = {name: {**fixed.get(name, {}), **sizes.get(name, {})} for name in wide}
        return _runs(runner, free, together, batch)

    if all(
        runs({name: {axis: span[side] for axis, span in row.items()} for name, row in wide.items()}) for side in _SIDES
    ):
        return wide
    found: dict[str, dict[int, Range]] = {name: {} for name in wide}
    for name, row in wide.items():
        for axis, span in row.items():
            least, best, most = (size if runs({name: {axis: size}}) else None for size in span)
            best = best or free.free
            found[name][axis] = (least or best, best, most or best)
    return found


def derive(
    label: str,
    signature: Signature,
    fixed: FixedDims,
    max_batch_size: int,
    preferred: Sequence[int],
    ranges: Ranges,
    written: Sequence[ShapeRange] = (),
) -> tuple[Profile, ...]:
    """The profiles of a model; each names every input.

    Args:
        label: `model/version`, for messages.
        fixed: dimensions that the config fixes.
        max_batch_size: of the completed config; 0 for tensors without a batch dimension.
        preferred: batch sizes that the config prefers.
        ranges: of the dimensions that neither the model nor the config fixes; of `ranges_of`.
        written: ranges of the parameter `shapes`; an input named for the second time begins the second profile.

    Raises:
        ConfigError: a range is of no input, or does not fit the model; or an input has no known rank and no range.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    by_name: dict[str, list[ShapeRange]] = {}
    for one in written:
        _check(label, one, specs.get(one.name), fixed.get(one.name, {}), max_batch_size, list(specs))
        by_name.setdefault(one.name, []).append(one)
    counts = Counter({name: len(ranges) for name, ranges in by_name.items()})
    profiles = max(counts.values(), default=1)
    if odd := [name for name, count in counts.items() if count not in (1, profiles)]:
        raise ConfigError(
            f'{label}: parameter "shapes" has {counts[odd[0]]} ranges for {odd[0]} and {profiles} for another input',
            "each range of an input belongs to one profile",
            "Give every input one range, or as many as there are profiles",
        )
    batch = _batch(max_batch_size, preferred)
    for name, spec in specs.items():
        if name not in by_name:
            by_name[name] = [_derived(label, spec, fixed.get(name, {}), batch, ranges.get(name, {}))]
    return tuple(
        tuple(by_name[name][min(number, len(by_name[name]) - 1)] for name in specs) for number in range(profiles)
    )


def fitting(profiles: Sequence[Profile], shapes: Shapes) -> int | None:
    """The number of the first profile that holds a request, or None."""
    for number, profile in enumerate(profiles):
        if all(one.holds(shapes[one.name]) for one in profile):
            return number
    return None


def bounds(profiles: Sequence[Profile]) -> str:
    """The profiles in words for a message."""
    sides = (" and ".join(f"{one.name} {_size(one.least)} to {_size(one.most)}" for one in row) for row in profiles)
    return "; or ".join(sides)


def dims_inside(profiles: Sequence[Profile], fixed: FixedDims, batched: bool) -> dict[str, dict[int, int]]:
    """The fixed dims, and of every other dimension but the batch the size that the first profile is best at."""
    first = 1 if batched else 0
    best = {one.name: dict(list(enumerate(one.best))[first:]) for one in profiles[0]} if profiles else {}
    return {name: {**best.get(name, {}), **fixed.get(name, {})} for name in {*best, *fixed}}


def only_the_batch_varies(
    signature: Signature, fixed: FixedDims, max_batch_size: int, profiles: Sequence[Profile]
) -> bool:
    """Whether requests differ in their batch alone, and one profile holds them all."""
    first = 1 if max_batch_size else 0
    for spec in signature.inputs:
        sizes = [fixed.get(spec.name, {}).get(axis, size) for axis, size in enumerate(spec.shape or ())]
        if spec.shape is None or not all(isinstance(size, int) for size in sizes[first:]):
            return False
    return any(
        all(not first or (one.least[0] == 1 and one.most[0] >= max_batch_size) for one in row) for row in profiles
    )


def shapes_of(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Input name -> shape."""
    return {name: array.shape for name, array in feeds.items()}


def _range(spec: TensorSpec, axis: int) -> Range:
    if len(spec.shape or ()) != _IMAGE_RANK:
        return _SEQUENCE
    return _IMAGE if axis else _IMAGES


def _runs(runner: Runner, recipe: Recipe, fixed: FixedDims, batch: int | None) -> bool:
    feeds = recipe.feeds(runner.signature, fixed, batch)
    try:
        runner.run(feeds, [spec.name for spec in runner.signature.outputs])
    except (EngineError, RequestError):
        return False
    return True


def _batch(max_batch_size: int, preferred: Sequence[int]) -> Range | None:
    if not max_batch_size:
        return None
    return 1, max((size for size in preferred if size <= max_batch_size), default=max_batch_size), max_batch_size


def _derived(
    label: str,
    spec: TensorSpec,
    fixed: Mapping[int, int],
    batch: Range | None,
    ranges: Mapping[int, Range],
) -> ShapeRange:
    if spec.shape is None:
        raise ConfigError(
            f"{label}: no optimization profile can be made for {spec.name}",
            "the model does not say how many dimensions it has",
            f'Write it: parameters {{ key: "shapes" value {{ string_value: "{spec.name}:1x8,8x8,32x8" }} }}',
        )
    sizes = []
    for axis, size in enumerate(spec.shape):
        if axis == 0 and batch and not isinstance(size, int):
            sizes.append(batch)
        elif isinstance(known := fixed.get(axis, size), int):
            sizes.append((known, known, known))
        else:
            sizes.append(ranges.get(axis) or _range(spec, axis))
    least, best, most = zip(*sizes, strict=True) if sizes else ((), (), ())
    return ShapeRange(spec.name, tuple(least), tuple(best), tuple(most))


def _check(
    label: str,
    one: ShapeRange,
    spec: TensorSpec | None,
    fixed: Mapping[int, int],
    max_batch_size: int,
    names: Sequence[str],
) -> None:
    what, do = f'{label}: parameter "shapes" has {one}', "Correct it in config.pbtxt"
    if spec is None:
        raise ConfigError(what, f"the model's inputs are {', '.join(names)}", do)
    if spec.shape is not None and len(spec.shape) != len(one.least):
        raise ConfigError(what, f"{one.name} has {len(spec.shape)} dimensions, the batch included", do)
    for axis, size in enumerate(spec.shape or ()):
        known = fixed.get(axis, size)
        if isinstance(known, int) and not one.least[axis] == known == one.most[axis]:
            raise ConfigError(what, f"dimension {axis} of {one.name} is {known} in the model or its config", do)
    if max_batch_size and one.least[0] > max_batch_size:
        raise ConfigError(what, f"max_batch_size is {max_batch_size}, so that no batch is as large", do)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
