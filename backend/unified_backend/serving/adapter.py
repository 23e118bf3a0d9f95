"""The life of one instance inside Triton's stub: complete, initialize, execute, finalize."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unified_backend import logs
from unified_backend.engines import EachRunner
from unified_backend.engines.device import DeviceRunner
from unified_backend.engines.tensorrt_misses import MissRunner
from unified_backend.errors import ConfigError, UnifiedError
from unified_backend.gpus import gpu_of, gpu_of_instance
from unified_backend.loading import Loaded, open_cache
from unified_backend.models import describe, load
from unified_backend.pbtxt import gives_max_batch_size, to_pbtxt
from unified_backend.repository import parameters
from unified_backend.serving.background import Background
from unified_backend.serving.each import EachExecutor
from unified_backend.serving.executor import Executor, Plan
from unified_backend.serving.memory import keep_freed_memory
from unified_backend.serving.metrics import ServerMetrics
from unified_backend.serving.parent import ending_with_the_server
from unified_backend.serving.pipelined import PipelinedExecutor
from unified_backend.serving.swap import Executes, Swap
from unified_backend.serving.warmup import warm_up

__all__ = ["ModelInstance", "complete_model_config"]

logger = logging.getLogger(__name__)

_COMPLETED = ("max_batch_size", "input", "output", "dynamic_batching")


def complete_model_config(auto_complete_model_config: Any) -> Any:
    """Fill in what config.pbtxt leaves open.

    Args:
        auto_complete_model_config: Triton's `pb_utils.ModelConfig`; the dictionary behind it is edited, because its
            setters refuse any difference, [3, -1, -1] against [3, 224, 224] included.
    """
    import triton_python_backend_utils as pb_utils

    logs.to_standard_error()
    config = auto_complete_model_config.as_dict()
    folder = _version_folder()
    label = f"{config['name']}/{folder.name}"
    try:
        given = gives_max_batch_size(folder.parent / "config.pbtxt")
        with ending_with_the_server(), open_cache() as cache:
            described = describe(label, folder, config, cache, max_batch_size_given=given, gpu=gpu_of(config))
    except UnifiedError as error:
        raise pb_utils.TritonModelException(str(error)) from None
    for field in _COMPLETED:
        if field in described.config:
            config[field] = described.config[field]
    logger.info("described model=%s format=%s %s", label, described.source.format, described.report.line())
    for note in described.report.notes:
        logger.info('note model=%s "%s"', label, note)
    return auto_complete_model_config


class ModelInstance:
    """One instance of one version of a model, as Triton's Python backend drives it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model and warm it up; the first request finds it ready.

        Args:
            args: Triton's; `model_repository` is the model's folder here, `model_config` the completed config.
        """
        import triton_python_backend_utils as pb_utils

        logs.to_triton(pb_utils.Logger)
        keep_freed_memory()
        config = json.loads(args["model_config"])
        label = f"{args['model_name']}/{args['model_version']}"
        model_dir = Path(args["model_repository"])
        folder = model_dir / args["model_version"]
        gpu = gpu_of_instance(args["model_instance_kind"], args["model_instance_device_id"], model_dir)
        try:
            # Open for as long as the instance lives: nothing that it was loaded from is evicted.
            self._cache = cache = open_cache()
            with ending_with_the_server():
                described = describe(label, folder, config, cache, max_batch_size_given=True, gpu=gpu)
                _require_complete(label, config, described.config)
                loaded = load(described, cache)
                report = described.report
                with report.phase("warm_up"):
                    plan = warm_up(loaded, cache)
            cache.push_in_background()
        except UnifiedError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._metrics = ServerMetrics(pb_utils, args["model_name"], args["model_version"])
        failures = cache.remote.failures if cache.remote else None
        if isinstance(loaded.engine_runner, MissRunner):
            loaded.engine_runner.misses.clear()  # those of the warm-up
            self._metrics.profile_misses = loaded.engine_runner.misses
        self._metrics.load(report.seconds, report.lookups, loaded.engine, failures)
        executor = self._made_executor(pb_utils, loaded, plan)
        self._swap = Swap(executor, loaded.runner.close)
        self._background: Background | None = None
        # What nothing will replace is called without a detour.
        self.execute = self._swap.execute if loaded.put_off else executor.execute
        logger.info(
            "loaded model=%s instance=%s format=%s engine=%s computes_in=%s "
            "max_batch_size=%d threads=%d requests=%s %s",
            label,
            args["model_instance_name"],
            described.source.format,
            loaded.engine,
            described.canonical.precision or "as-it-came",
            config["max_batch_size"],
            loaded.threads.intra_op,
            "concatenated" if plan.concatenate else "looped",
            report.line(),
        )
        if loaded.put_off:
            make = partial(self._made_executor, pb_utils)
            self._background = Background(loaded, folder, config, cache, self._swap, make, self._metrics)

    def _made_executor(self, pb_utils: Any, loaded: Loaded, plan: Plan) -> Executes:
        described, on_device = loaded.described, isinstance(loaded.runner, DeviceRunner)
        gpu_inputs = on_device and parameters(described.config).get("FORCE_CPU_ONLY_INPUT_TENSORS") == "no"
        plan = dataclasses.replace(plan, gpu_inputs=gpu_inputs)
        plain = Executor(pb_utils, loaded.runner, plan, self._metrics.batch_sizes, self._metrics.errors)
        if isinstance(loaded.runner, EachRunner):
            loaded.runner.spent = self._metrics.spent  # what the warm-up took is left behind
            return EachExecutor(pb_utils, plain, loaded.runner)
        if not isinstance(loaded.runner, DeviceRunner):
            return plain
        return PipelinedExecutor(pb_utils, plain, loaded.runner, gpu_inputs, described.settings.gpu_outputs)

    def finalize(self) -> None:
        """Free everything; Triton waits for this for ever, so nothing here waits for long."""
        if self._background:
            self._background.close()
        self._metrics.close()
        self._swap.close()
        self._cache.close()


def _version_folder() -> Path:
    """The version folder that auto-complete runs for.

    Triton passes no argument that says so; the stub's own first one is `<repository>/<model>/<version>/model.py`.
    """
    return Path(Path("/proc/self/cmdline").read_bytes().split(b"\0")[1].decode()).parent


def _require_complete(label: str, config: Mapping[str, Any], completed: Mapping[str, Any]) -> None:
    """With auto-complete on, the config is complete here; with it off, it must have been written so.

    Raises:
        ConfigError: tensors are missing from it, or are less than the model needs.
    """
    for side in ("input", "output"):
        written = {tensor["name"]: list(tensor.get("dims") or []) for tensor in config.get(side) or []}
        wanted = {tensor["name"]: tensor["dims"] for tensor in completed[side]}
        if written != wanted:
            raise ConfigError(
                f"{label}: config.pbtxt has {side} {json.dumps(written)} and the model needs {json.dumps(wanted)}",
                "the server runs with auto-complete disabled, so the config is used as it is written",
                f"Write: {' '.join(to_pbtxt({side: completed[side]}).split())}",
            )
