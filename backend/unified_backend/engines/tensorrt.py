"""TensorRT and TensorRT-RTX: two rungs with one way from the canonical ONNX model, or a plan as it is, to a runner."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.engines import Built, Canonical, Engine, Runner, Threads
from unified_backend.engines.cuda import cuda_unusable
from unified_backend.engines.onnxruntime import OnnxRuntime
from unified_backend.engines.onnxruntime_cuda import OnnxRuntimeCuda
from unified_backend.engines.tensorrt_build import PLAN
from unified_backend.engines.tensorrt_child import build_in_child
from unified_backend.engines.tensorrt_misses import MissRunner
from unified_backend.engines.tensorrt_module import PACKAGES, installed, module_of
from unified_backend.engines.tensorrt_run import open_plan
from unified_backend.errors import CacheFullError, ConfigError, EngineError
from unified_backend.formats.plan import header_of
from unified_backend.gpus import Gpu, why_none
from unified_backend.settings import Settings
from unified_backend.variables import cache_settings

__all__ = ["TensorRt", "TensorRtRtx"]

_RECIPE = 1  # raised when the same key fields would give other files or facts
_PLANS = {"tensorrt": "plan", "tensorrt_rtx": "plan-rtx"}  # engine -> the format of its plans
_NEXT: tuple[Engine, ...] = (OnnxRuntimeCuda(), OnnxRuntime())  # who answers what no profile holds: the first usable


class TensorRt:
    """The TensorRT rung: needs a GPU to build and to run, and an engine is for one kind of GPU."""

    name = "tensorrt"
    accepts = frozenset({"onnx", _PLANS["tensorrt"]})
    builds_slowly = True

    def unusable(self, gpu: Gpu | None) -> str | None:
        """What is missing of GPU, driver, module and cuda-python, or None."""
        return _missing(self.name, gpu)

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """TensorRT's version, the kind of GPU as far as the engine is tied to it, shapes and options."""
        assert settings.gpu is not None
        match settings.tensorrt.hardware_compatibility:
            case "ampere_plus":
                device = "ampere_plus"
            case "same_compute_capability":
                device = settings.gpu.architecture
            case _:
                device = f"{settings.gpu.name} {settings.gpu.architecture}"
        return _key_fields(self.name, settings, device)

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Build in a process of its own; a plan is built already."""
        return _built(self.name, canonical, settings, folder, targets=None)

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> Runner:
        """The engine on the instance's GPU."""
        return _loaded(self.name, canonical, built, settings, threads)


class TensorRtRtx:
    """The TensorRT-RTX rung: builds without a GPU, and an engine is for one compute capability."""

    name = "tensorrt_rtx"
    accepts = frozenset({"onnx", _PLANS["tensorrt_rtx"]})
    builds_slowly = True

    def unusable(self, gpu: Gpu | None) -> str | None:
        """What is missing, or that TensorRT-RTX has nothing for the GPU, or None."""
        return _missing(self.name, gpu) or (self.no_target(gpu) if gpu else None)

    def no_target(self, gpu: Gpu) -> str | None:
        """Why no engine can be built for the compute capability of a GPU, be it here or not; or None."""
        try:
            known = module_of(self.name).ComputeCapability.__members__
        except EngineError as error:
            return error.why
        if gpu.architecture.upper() in known:
            return None
        there = ", ".join(name.lower() for name in known if name.startswith("SM"))
        return f"it builds for {there}, and not for {gpu.architecture}"

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """TensorRT-RTX's version, the compute capability, shapes and options."""
        assert settings.gpu is not None
        return _key_fields(self.name, settings, settings.gpu.architecture)

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """Build in a process of its own, for the GPU's compute capability; a plan is built already."""
        targets = [settings.gpu.compute_capability] if settings.gpu else []
        return _built(self.name, canonical, settings, folder, targets)

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> Runner:
        """The engine on the instance's GPU."""
        return _loaded(self.name, canonical, built, settings, threads)


def _missing(name: str, gpu: Gpu | None) -> str | None:
    reasons = []
    if gpu is None:
        reasons.append(why_none())
    if not installed(name):
        reasons.append(f"the package {PACKAGES[name]} is not installed")
    elif gpu is not None:  # a host without one pays for no import
        try:
            module_of(name)
        except EngineError as error:
            reasons.append(error.why)
    if gpu is not None and (reason := cuda_unusable()):
        reasons.append(reason)
    return "; ".join(reasons) or None


def _key_fields(name: str, settings: Settings, device: str) -> dict[str, Any]:
    own = {
        field: value
        for field, value in dataclasses.asdict(settings.tensorrt).items()
        # What is written in `shapes` is in the profiles; the others change nothing that is built.
        if field not in ("shapes", "profile_miss", "timing_cache", "build_seconds", "plugins")
    }
    return {
        "version": str(module_of(name).__version__),
        "device": device,
        "profiles": [[str(one) for one in profile] for profile in settings.profiles],
        "options": own,
        "tf32": settings.tf32,
        "plugins": [_digest(library) for library in settings.tensorrt.plugins],
        "recipe": _RECIPE,
    }


def _digest(library: str) -> str:
    try:
        return hashlib.sha256(Path(library).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f'parameter "plugins" names {library}',
            f"it cannot be read ({error.strerror})",
            "Give the full path of a shared library that the server can read",
        ) from None


def _built(
    name: str, canonical: Canonical, settings: Settings, folder: Path, targets: list[tuple[int, int]] | None
) -> dict[str, Any]:
    if canonical.format != "onnx":
        return {}
    gpu = settings.gpu
    assert gpu is not None
    if canonical.signature.inputs and not settings.profiles:
        raise EngineError(
            f"{canonical.label}: there is no optimization profile",
            "the model does not say how many dimensions an input has",
            "Write the shapes of the inputs as parameter `shapes`",
        )
    options = dataclasses.asdict(settings.tensorrt)
    del options["shapes"]
    here = gpu.index >= 0
    job = {
        "engine": name,
        "label": canonical.label,
        "path": str(canonical.path),
        "folder": str(folder),
        "signature": canonical.signature.to_json(),
        "profiles": [[dataclasses.astuple(one) for one in profile] for profile in settings.profiles],
        "options": options,
        "tf32": settings.tf32,
        "timing_cache": _timing_cache(name, gpu) if settings.tensorrt.timing_cache and not targets else None,
        "targets": targets,
        "here": here,
        # CUDA reserves far more addresses than memory: with a GPU the kernel's own limits are what there is.
        "memory": 0 if here else settings.conversion_memory,
    }
    facts = build_in_child(name, job, settings.tensorrt.build_seconds, gpu.index if here else None)
    return {**facts, "profiles": [[str(one) for one in profile] for profile in settings.profiles]}


def _timing_cache(name: str, gpu: Gpu) -> str:
    """The file that all builds for this GPU with this version share; one that cannot be written is none."""
    folder = cache_settings().directory / "timing-caches"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheFullError(f"{folder} cannot be made", str(error), "Set the parameter `timing_cache` to 0") from None
    device = "".join(letter if letter.isalnum() else "-" for letter in f"{gpu.name}-{gpu.architecture}")
    return str(folder / f"{name}-{module_of(name).__version__}-{device}.cache")


def _require_fit(name: str, canonical: Canonical, settings: Settings) -> None:
    """
    Raises:
        EngineError: the plan is of another version, or for another GPU.
    """
    header, gpu = header_of(canonical.path), settings.gpu
    what, again = f"{canonical.label}: the plan does not run here", "Build it again here, or drop the ONNX model"
    version = str(module_of(name).__version__)
    if header.version and not (settings.tensorrt.version_compatible or version.startswith(header.version)):
        raise EngineError(what, f"it was built by {name} {header.version}, and {version} is installed", again)
    if gpu and header.targets and gpu.architecture not in header.targets:
        why = f"it was built for {', '.join(header.targets)}, and the GPU is {gpu.architecture} ({gpu.name})"
        raise EngineError(what, why, again)


def _loaded(name: str, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> Runner:
    if built is None and canonical.format == "onnx":
        raise EngineError(
            f"{canonical.label}: the engine could not be kept",
            "no disk had room for it",
            "Free space, or choose another folder with TRITON_UNIFIED_CACHE",
        )
    if canonical.format != "onnx":
        _require_fit(name, canonical, settings)
    path = canonical.path if built is None or canonical.format != "onnx" else built.folder / PLAN
    runner = open_plan(name, canonical, path, settings)
    if not settings.profiles or canonical.format != "onnx" or runner.takes_all:
        return runner.runner
    usable: Mapping[str, Engine] = {engine.name: engine for engine in _NEXT if not engine.unusable(settings.gpu)}
    following = next(iter(usable.values()), None) if settings.tensorrt.profile_miss == "next" else None
    load_next = (lambda: following.load(canonical, None, settings, threads)) if following else None
    return MissRunner(canonical.label, name, runner.runner, settings.profiles, load_next)
