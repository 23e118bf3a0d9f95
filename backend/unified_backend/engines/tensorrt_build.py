"""The process that a TensorRT engine is built in: network, profiles, builder options, timing cache, progress.

`python -m unified_backend.engines.tensorrt_build` reads one JSON object and prints one; see `apart`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_backend.engines.apart import answer_apart
from unified_backend.engines.tensorrt_child import PHASE
from unified_backend.engines.tensorrt_module import TRITON_TYPES, Log, load_plugins, module_of
from unified_backend.errors import EngineError
from unified_backend.tensors import Signature

__all__ = ["LAYERS", "PLAN", "built"]

PLAN, LAYERS = "model.plan", "layers.json"
_ASSERTION = re.compile(r'&& "(.*?)\.?"$')
_MESSAGES = 3  # of the parser's that are shown


def built(job: Mapping[str, Any]) -> dict[str, Any]:
    """Build what a job asks for; the plan and its layers go into the job's folder.

    Args:
        job: `engine`, `label`, `path`, `folder`, `signature`, `profiles`, `options`, `tf32`, `timing_cache` (a path or
            None), `targets`: compute capabilities, of TensorRT-RTX; and `here`: whether the GPU is here.

    Raises:
        EngineError: TensorRT does not take the model, or a profile or option.
    """
    began = time.monotonic()
    trt = module_of(job["engine"])
    log = Log(trt)
    _say("reading the model")
    load_plugins(trt, log, job["options"]["plugins"])
    builder = trt.Builder(log.sink)
    network = _network(trt, builder, log, job)
    config = _config(trt, builder, network, job)
    plan = _plan(builder, network, config, job, log)
    folder = Path(job["folder"])
    (folder / PLAN).write_bytes(plan)
    layers = (_engine_layers(trt, log, plan) if job["here"] else []) or _network_layers(network)
    (folder / LAYERS).write_text(json.dumps(layers))
    return {
        "version": str(trt.__version__),
        "bytes": len(plan),
        "layers": len(layers),
        "seconds": round(time.monotonic() - began, 2),
    }


def _network(trt: Any, builder: Any, log: Log, job: Mapping[str, Any]) -> Any:
    # From TensorRT 11 on there is no other kind of network.
    strong = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, log.sink)
    if not _parsed(parser, job["path"]):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        reasons = [_stopped(error.node_operator(), error.node_name(), error.desc()) for error in errors]
        raise EngineError(
            f"{job['label']}: {job['engine']} does not take the model",
            " | ".join(dict.fromkeys(reasons[:_MESSAGES])) or log.reason("the parser does not say why"),
            "Give the plugin that has the operator as parameter `plugins`, or set `engine` to another one",
        )
    signature = Signature.from_json(job["signature"])
    given = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    made = {tensor.name: tensor for tensor in map(network.get_output, range(network.num_outputs))}
    for specs, tensors in ((signature.inputs, given), (signature.outputs, made)):
        for spec in specs:
            found = TRITON_TYPES.get(tensors[spec.name].dtype.name) if spec.name in tensors else None
            if found != spec.dtype:
                raise EngineError(
                    f"{job['label']}: {job['engine']} does not keep {spec.name} as it is",
                    f"the model has it as {spec.dtype}, and the engine would have {found or 'it not'}",
                    "Export the model with another type there, or set `engine` to another one",
                )
    for name in made.keys() - {spec.name for spec in signature.outputs}:
        network.unmark_output(made[name])  # it is left out, and would need memory all the same
    if shaping := [name for name, tensor in given.items() if tensor.is_shape_tensor]:
        raise EngineError(
            f"{job['label']}: {job['engine']} would need the values of {shaping[0]} to be known",
            "the values of that input are the shape of another tensor",
            "Export the model with that shape fixed, or set `engine` to another one",
        )
    return network


def _parsed(parser: Any, path: str) -> bool:
    """Parse a file, without the names of dimensions that share one and are not alike.

    TensorRT holds dimensions of one name to one size, and exporters call all that they do not know `?`: PP-OCR's
    networks would take no image but square ones.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input]
    unfit = {
        name
        for shape in shapes
        for name, count in Counter(dim.dim_param for dim in shape if dim.dim_param).items()
        if count > 1 or not any(map(str.isalnum, name))
    }
    if not unfit:
        return bool(parser.parse_from_file(path))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in unfit:
                dim.ClearField("dim_param")
    return bool(parser.parse(model.SerializeToString(), path))


def _stopped(operator: str, name: str, words: str) -> str:
    """What stopped the parser; of an assertion the part that is for people."""
    if match := _ASSERTION.search(words):
        words = match[1]
    node = f'{operator} "{name}"' if name else operator
    return f"{node}: {words}" if node else words


def _config(trt: Any, builder: Any, network: Any, job: Mapping[str, Any]) -> Any:
    from polygraphy.backend.trt import CreateConfig, Profile
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    options, own = job["options"], dict[str, Any]()
    profiles = []
    for ranges in job["profiles"]:
        profile = Profile()
        for name, least, best, most in ranges:
            profile.add(name, least, best, most)
        profiles.append(profile)
    if options["hardware_compatibility"] != "none":
        levels, level = trt.HardwareCompatibilityLevel.__members__, options["hardware_compatibility"].upper()
        if level not in levels:
            why = f"this version knows {', '.join(levels).lower()}"
            raise EngineError(f"{job['label']}: no {level.lower()} engine", why, "Correct `hardware_compatibility`")
        own["hardware_compatibility_level"] = levels[level]
    if options["max_workspace_size_bytes"]:
        own["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options["max_workspace_size_bytes"]}
    if job["targets"]:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        create, own["compute_capabilities"] = CreateConfigRTX, [tuple(target) for target in job["targets"]]
    else:
        create, own["load_timing_cache"] = CreateConfig, job["timing_cache"]
        if job["timing_cache"]:
            _remove_if_damaged(builder, Path(job["timing_cache"]))
    try:
        config = create(
            profiles=profiles,
            builder_optimization_level=options["builder_optimization_level"],
            version_compatible=options["version_compatible"],
            strip_plan=options["strip_plan"],
            sparse_weights=options["sparsity"],
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
            progress_monitor=_monitor(trt),
            **own,
        )(builder, network)
    except PolygraphyException as error:
        raise EngineError(
            f"{job['label']}: {job['engine']} does not take the profiles or options",
            " ".join(str(error).split()),
            "Correct the parameters",
        ) from None
    if options["strip_plan"]:
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    (config.set_flag if job["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
    return config


def _remove_if_damaged(builder: Any, timing_cache: Path) -> None:
    """Or every build from now on would fail at a file that a full disk once cut short."""
    from polygraphy.util import LockFile

    with LockFile(str(timing_cache)):
        if not timing_cache.is_file():
            return
        config = builder.create_builder_config()
        try:
            sound = config.set_timing_cache(config.create_timing_cache(timing_cache.read_bytes()), False)
        except (RuntimeError, TypeError):
            sound = False
        if not sound:
            timing_cache.unlink()


def _plan(builder: Any, network: Any, config: Any, job: Mapping[str, Any], log: Log) -> bytes:
    from polygraphy.backend.trt import engine_bytes_from_network
    from polygraphy.exception import PolygraphyException

    _say("building")
    try:
        # Merges what was measured into the timing cache, under a lock of that file.
        return bytes(engine_bytes_from_network((builder, network), config, save_timing_cache=job["timing_cache"]))
    except PolygraphyException as error:
        raise EngineError(
            f"{job['label']}: {job['engine']} does not build the model",
            log.reason(" ".join(str(error).split())),
            "Name other shapes with the parameter `shapes`, or set `engine` to another one",
        ) from None


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            _say(name)

        def step_complete(self, name: str, step: int) -> bool:
            return True

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()


def _engine_layers(trt: Any, log: Log, plan: bytes) -> list[dict[str, str]]:
    """The layers as TensorRT fused them, which only a GPU that runs them tells; none where it tells nothing."""
    engine = trt.Runtime(log.sink).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(told).get("Layers") or []
    return [
        {"name": str(layer.get("Name", "")), "type": str(layer.get("LayerType", "")).lower()}
        for layer in layers
        if isinstance(layer, dict)
    ]


def _network_layers(network: Any) -> list[dict[str, str]]:
    """The layers as the parser made them."""
    layers = map(network.get_layer, range(network.num_layers))
    return [{"name": layer.name, "type": layer.type.name.lower(), "gives": _gives(layer)} for layer in layers]


def _gives(layer: Any) -> str:
    """The type that a layer of a strongly typed network computes and gives; empty of one that gives nothing."""
    name = layer.get_output(0).dtype.name if layer.num_outputs else ""
    return TRITON_TYPES.get(name, name)


def _say(phase: str) -> None:
    print(f"{PHASE}{phase}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    answer_apart(built)
