"""What a config says of TensorRT: parameters, and the options that Triton's ONNX Runtime backend has for it."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.values import SWITCH, choice, count, parse_bytes, words

__all__ = ["Profile", "ShapeRange", "TensorRtOptions", "accelerator_parameters", "tensorrt_parsers"]

logger = logging.getLogger(__name__)

Dims = tuple[int, ...]
_RANGE = re.compile(r"([^\s;]+?):(\d+(?:x\d+)*(?:,\d+(?:x\d+)*)*)(?=[\s;]|$)")
_EXAMPLE = "x:1x3x224x224,8x3x224x224,32x3x640x640"
_LEVELS = tuple(range(6))  # of the builder's optimisation; TensorRT's own default is 3


@dataclasses.dataclass(frozen=True)
class ShapeRange:
    """The shapes of one input that a profile is built for, the batch dimension included."""

    name: str
    least: Dims
    best: Dims
    most: Dims

    def holds(self, shape: Dims) -> bool:
        """Whether the shape is inside."""
        return len(shape) == len(self.least) and all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)
        )

    def __str__(self) -> str:
        shapes = (self.least, self.best, self.most)
        return f"{self.name}:{','.join('x'.join(map(str, shape)) for shape in shapes)}"


Profile = tuple[ShapeRange, ...]


@dataclasses.dataclass(frozen=True)
class TensorRtOptions:
    """How TensorRT and TensorRT-RTX build; every field is a parameter of the same name.

    Attributes:
        shapes: smallest, best and largest shape of inputs, the batch included:
            `x:1x3x224x224,8x3x224x224,32x3x640x640`, or one shape; inputs apart by spaces; an input named again begins
            the next profile. By default one is derived from the config and the model.
        profile_miss: a request outside every profile: `next` has the engine answer that is next on the ladder,
            `reject` refuses it.
        builder_optimization_level: of TensorRT's builder; its own default where nothing is said.
        max_workspace_size_bytes: of scratch memory that the builder may plan with; 0 for no limit.
        hardware_compatibility: engines for more than this kind of GPU: for any of its compute capability, or any from
            Ampere on.
        version_compatible: let later versions of TensorRT run the engine.
        strip_plan: keep the weights out of the engine and put them in at load, from the model.
        sparsity: use kernels for weights with 2:4 sparsity.
        timing_cache: share measurements of kernels between the builds for a GPU.
        plugins: paths of shared libraries with TensorRT plugins.
        build_seconds: time limit of a build; 0 for none.
    """

    shapes: tuple[ShapeRange, ...] = ()
    profile_miss: str = "next"
    builder_optimization_level: int | None = None
    max_workspace_size_bytes: int = 0
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    strip_plan: bool = False
    sparsity: bool = False
    timing_cache: bool = True
    plugins: tuple[str, ...] = ()
    build_seconds: int = 3600


def tensorrt_parsers() -> dict[str, Callable[[str], Any]]:
    """Parser of each parameter that is a field of `TensorRtOptions`."""
    hardware = ("none", "same_compute_capability", "ampere_plus")
    return {
        "shapes": _shapes,
        "profile_miss": choice({name: name for name in ("next", "reject")}),
        "builder_optimization_level": choice({str(level): level for level in _LEVELS}),
        "max_workspace_size_bytes": parse_bytes,
        "hardware_compatibility": choice({name: name for name in hardware}),
        "version_compatible": choice(SWITCH),
        "strip_plan": choice(SWITCH),
        "sparsity": choice(SWITCH),
        "timing_cache": choice(SWITCH),
        "plugins": words,
        "build_seconds": count,
    }


# Names in Triton's ONNX Runtime backend (README, "TensorRT execution provider") -> ours; None for what has no meaning
# here: engines are always cached, and their cache is checked.
_NAMES: dict[str, str | None] = {
    "max_workspace_size_bytes": "max_workspace_size_bytes",
    "trt_max_workspace_size": "max_workspace_size_bytes",
    "trt_builder_optimization_level": "builder_optimization_level",
    "trt_sparsity_enable": "sparsity",
    "trt_timing_cache_enable": "timing_cache",
    "trt_extra_plugin_lib_paths": "plugins",
    "trt_engine_cache_enable": None,
    "trt_engine_cache_path": None,
    "trt_engine_cache_prefix": None,
    "trt_timing_cache_path": None,
    "trt_force_timing_cache": None,
    "trt_dump_ep_context_model": None,
    "trt_context_memory_sharing_enable": None,
    "trt_cuda_graph_enable": "cuda_graph",
    "max_cached_engines": None,
    "minimum_segment_size": None,
    "trt_max_partition_iterations": None,
    "trt_min_subgraph_size": None,
}
_PROFILES = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
_PRECISION = ("precision_mode", "trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")
_PORTABLE = "trt_engine_hw_compatible"
_KNOWN = {*_NAMES, *_PROFILES, *_PRECISION, _PORTABLE}


def accelerator_parameters(label: str, config: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a config, with TensorRT's options as Triton's ONNX Runtime backend names them under our names.

    Args:
        label: `model/version`, for messages.
        config: in Triton's JSON form; `optimization.execution_accelerators` is read.
        parameters: `parameters` of the config: theirs win.

    Raises:
        ConfigError: profiles that are not whole.
    """
    accelerators = ((config.get("optimization") or {}).get("execution_accelerators") or {}).get(
        "gpu_execution_accelerator"
    )
    options: dict[str, str] = {}
    for accelerator in accelerators or []:
        if str(accelerator.get("name", "")).lower() == "tensorrt":
            options.update({name: str(value) for name, value in (accelerator.get("parameters") or {}).items()})
    for name in sorted(options.keys() - _KNOWN):
        logger.warning('unknown TensorRT option ignored model=%s option="%s"', label, name)
    own = dict(parameters)
    options.update({name: own.pop(name) for name in _KNOWN & own.keys() if _NAMES.get(name) != name})
    found = {ours: value for name, value in options.items() if (ours := _NAMES.get(name)) is not None}
    if _on(options.get(_PORTABLE, "")):
        found["hardware_compatibility"] = "ampere_plus"
    if given := [name for name in _PRECISION if _lowers(name, options.get(name, ""))]:
        logger.warning(
            'option ignored model=%s option="%s" reason="TensorRT takes the type of each tensor from the model" '
            'next="give the model in that precision"',
            label,
            given[0],
        )
    if any(name in options for name in _PROFILES):
        found["shapes"] = _joined(label, [options.get(name, "") for name in _PROFILES])
    return {**found, **own}


def _lowers(name: str, value: str) -> bool:
    if name == "precision_mode":
        return value.upper() not in ("", "FP32")
    return _on(value)


def _on(value: str) -> bool:
    return SWITCH.get(value.strip().lower(), False)


def _joined(label: str, texts: list[str]) -> str:
    """`x:1x3,..` of the smallest, best and largest shapes as one text in our notation."""
    sides = [[part.strip().rpartition(":") for part in text.split(",") if part.strip()] for text in texts]
    names = [[name for name, _, _ in side] for side in sides]
    if names[0] != names[1] or names[0] != names[2]:
        raise ConfigError(
            f"{label}: {', '.join(_PROFILES)} do not fit together",
            "each must name the same inputs in the same order",
            f"Give all three, or the parameter `shapes` in their place: {_EXAMPLE}",
        )
    return ";".join(f"{low[0]}:{low[2]},{best[2]},{high[2]}" for low, best, high in zip(*sides, strict=True))


def _shapes(text: str) -> tuple[ShapeRange, ...]:
    """Shape ranges; an input that is named again belongs to the next profile."""
    return tuple(_ranges(text))


def _ranges(text: str) -> Iterator[ShapeRange]:
    wrong = f'it must be inputs with their smallest, best and largest shape, such as "{_EXAMPLE}"'
    parts = [part for part in re.split(r"[;\s]+", text.strip()) if part]
    if not parts:
        raise ValueError(wrong)
    for part in parts:
        match = _RANGE.fullmatch(part)
        shapes = [tuple(map(int, one.split("x"))) for one in match[2].split(",")] if match else []
        if match is None or len(shapes) not in (1, 3):
            raise ValueError(wrong)
        least, best, most = shapes if len(shapes) == 3 else shapes * 3
        if not len(least) == len(best) == len(most):
            raise ValueError(f"the shapes of {match[1]} differ in their number of dimensions")
        if not all(low <= middle <= high for low, middle, high in zip(least, best, most, strict=True)):
            raise ValueError(f"of {match[1]} some dimension is not in the order smallest, best, largest")
        if 0 in least:
            raise ValueError(f"of {match[1]} a dimension is 0")
        yield ShapeRange(match[1], least, best, most)
