"""A completed config as one of Triton's native backends reads it; what that one has not got is dropped, and told.

What the backends take is read from their sources: onnxruntime_backend (src/onnxruntime.cc), openvino_backend
(src/openvino.cc) and tensorrt_backend (README.md, "Parameters").
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from unified_backend.completion import ModelConfig
from unified_backend.errors import ConversionError
from unified_backend.settings import Settings
from unified_backend.tensors import Signature, TensorSpec

__all__ = ["PLATFORMS", "level", "native_config"]

PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}  # openvino has none
_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
_OURS = ("backend", "platform", "runtime", "default_model_filename", "cc_model_filenames", "parameters")
# Parameters that say what the network is: the exported file has them in it.
_IN_THE_MODEL = (
    *("source", "signature", "tags", "inputs", "outputs", "names", "method", "arguments", "opset", "converter"),
    *("precision", "exclude", "calibration", "calibration_method", "postprocess"),
)
# Parameters of the native backends that this one has not got, and of Triton's core: they stay as they are written.
_THEIRS = {
    "onnxruntime": ("arena_extend_strategy", "do_copy_in_default_stream", "share_session_between_instances"),
    "openvino": (
        *("NUM_STREAMS", "PERFORMANCE_HINT", "INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS", "HINT_BF16"),
        *("CPU_EXTENSION_PATH", "SKIP_OV_DYNAMIC_BATCHSIZE", "ENABLE_BATCH_PADDING", "RESHAPE_IO_LAYERS"),
    ),
    "tensorrt": ("execution_context_allocation_strategy",),
}
_CORE = ("TRITON_BATCH_STRATEGY_PATH",)
_SEARCHES = ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")  # by the number that the native backend has for each
_LEVELS = {"none": 2, "basic": -1, "extended": 1}  # of optimization.graph.level; all is 0, which is the default
# This backend takes the type of each tensor from the model, whatever these say; the native one would go by them.
_LOWERING = ("precision_mode", "trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")

_Value = Callable[[Settings], str]
_TRANSLATED: dict[str, dict[str, tuple[str, _Value]]] = {
    "onnxruntime": {
        "intra_op_thread_count": ("intra_op_thread_count", lambda it: str(it.intra_op_thread_count)),
        "inter_op_thread_count": ("inter_op_thread_count", lambda it: str(it.inter_op_thread_count)),
        "execution_mode": ("execution_mode", lambda it: str(int(it.execution_mode == "parallel"))),
        "enable_mem_arena": ("enable_mem_arena", lambda it: str(int(it.enable_mem_arena))),
        "enable_mem_pattern": ("enable_mem_pattern", lambda it: str(int(it.enable_mem_pattern))),
        "memory.enable_memory_arena_shrinkage": (
            "memory.enable_memory_arena_shrinkage",
            lambda it: "cpu:0" if it.arena_shrinkage else "",
        ),
        "gpu_mem_limit": ("gpu_mem_limit", lambda it: str(it.gpu_mem_limit) if it.gpu_mem_limit else ""),
        "cudnn_conv_algo_search": (
            "cudnn_conv_algo_search",
            lambda it: str(_SEARCHES.index(it.cudnn_conv_algo_search)) if it.cudnn_conv_algo_search else "",
        ),
        "session.use_device_allocator_for_initializers": (
            "session.use_device_allocator_for_initializers",
            lambda it: dict(it.session_options)["session.use_device_allocator_for_initializers"],
        ),
    },
    "openvino": {
        "intra_op_thread_count": (
            "INFERENCE_NUM_THREADS",
            lambda it: str(it.intra_op_thread_count) if it.intra_op_thread_count else "",
        ),
        "openvino_hint": ("PERFORMANCE_HINT", lambda it: it.openvino_hint.upper()),
    },
    "tensorrt": {},
}
# Parameters that become another field of the config than `parameters`; see `_fields`.
_FIELDS = {"onnxruntime": ("graph_optimization", "custom_op_library", "tf32", "prefer_nhwc")}


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Who reads the config, and what of."""

    label: str
    backend: str
    signature: Signature

    @property
    def name(self) -> str:
        return f"Triton's {_NAMES[self.backend]} backend"


def native_config(
    label: str,
    backend: str,
    completed: ModelConfig,
    parameters: Mapping[str, str],
    settings: Settings,
    signature: Signature,
) -> tuple[ModelConfig, list[str]]:
    """The config of an exported model, and a note for each thing that is otherwise than as it is served here.

    Args:
        label: `model/version`, for messages.
        backend: `onnxruntime`, `openvino` or `tensorrt`.
        completed: the config, completed.
        parameters: its own, by name.
        settings: what they say.
        signature: of the exported file, as that backend reads it.

    Raises:
        ConversionError: the backend cannot serve a tensor of the model, or none of the outputs is left.
    """
    reader = _Reader(label, backend, signature)
    config = {name: copy.deepcopy(value) for name, value in completed.items() if name not in _OURS}
    config["backend"] = backend
    if backend in PLATFORMS:
        config["platform"] = PLATFORMS[backend]
    notes = _parameters(config, parameters, settings, reader)
    for spec in (*signature.inputs, *signature.outputs):
        _require_served(spec, reader)
    notes += _tensors(config, reader)
    notes += _batch(config, reader)
    notes += _accelerators(config)
    return config, notes


def level(settings: Settings) -> int:
    """`optimization.graph.level` of what the parameter `graph_optimization` says."""
    if settings.precision == "fp8":
        return _LEVELS["basic"]  # from `extended` on the optimiser writes QLinearConv, which has no FP8
    return _LEVELS.get(settings.graph_optimization, 0)


def _parameters(config: ModelConfig, given: Mapping[str, str], settings: Settings, reader: _Reader) -> list[str]:
    table = _TRANSLATED[reader.backend]
    kept = (*_THEIRS[reader.backend], *_CORE)
    own = {table[name][0]: table[name][1](settings) for name in given if name in table}
    own |= {name: value for name, value in given.items() if name in kept}
    if written := {name: {"string_value": value} for name, value in sorted(own.items()) if value}:
        config["parameters"] = written
    fields = _FIELDS.get(reader.backend, ())
    if reader.backend == "onnxruntime":
        _fields(config, settings)
    if reader.backend == "openvino":  # which refuses to load on anything else
        groups = config.get("instance_group") or [{}]
        config["instance_group"] = [{**group, "kind": group.get("kind") or "KIND_CPU"} for group in groups]
    rest = [name for name in sorted(given) if name not in (*table, *kept, *fields)]
    inside = [name for name in rest if name in _IN_THE_MODEL]
    dropped = [name for name in rest if name not in inside]
    notes = [f"in the exported file already: {', '.join(inside)}"] if inside else []
    return notes + ([f"dropped, for {reader.name} has none like it: {', '.join(dropped)}"] if dropped else [])


def _fields(config: ModelConfig, settings: Settings) -> None:
    """What the ONNX Runtime backend has elsewhere than among the parameters."""
    if number := level(settings):
        config.setdefault("optimization", {})["graph"] = {"level": number}
    if settings.custom_op_library:
        config.setdefault("model_operations", {})["op_library_filename"] = list(settings.custom_op_library)
    groups = config.get("instance_group") or [{}]
    if all(group.get("kind") == "KIND_CPU" for group in groups):
        return
    # ONNX Runtime's own default is to round the inputs of FP32 products to TF32, and this backend's is not to.
    options = {"use_tf32": str(int(settings.tf32))}
    if settings.prefer_nhwc is not None:
        options["prefer_nhwc"] = str(int(settings.prefer_nhwc))
    accelerators = config.setdefault("optimization", {}).setdefault("execution_accelerators", {})
    listed = accelerators.setdefault("gpu_execution_accelerator", [])
    if not any(one.get("name") == "cuda" for one in listed):
        listed.append({"name": "cuda", "parameters": options})


def _accelerators(config: ModelConfig) -> list[str]:
    """Take out of the accelerators what would have the model computed otherwise than it was verified."""
    optimization = config.get("optimization") or {}
    dropped = []
    for accelerator in (optimization.get("execution_accelerators") or {}).get("gpu_execution_accelerator") or []:
        options = accelerator.get("parameters") or {}
        dropped += [name for name in _LOWERING if options.pop(name, None) is not None]
    why = "types of tensors are those of the model, as it was verified"
    return [f"dropped of the execution accelerator: {', '.join(dropped)}: {why}"] if dropped else []


def _require_served(spec: TensorSpec, reader: _Reader) -> None:
    """
    Raises:
        ConversionError: the native backend has not got the tensor's type, or takes it for a scalar.
    """
    what = f"{reader.label}: {reader.name} cannot serve the model"
    if spec.dtype == "BF16" or (spec.dtype == "STRING" and reader.backend != "onnxruntime"):
        raise ConversionError(
            what, f'its tensor "{spec.name}" is {spec.dtype}, a type that this backend has not got', _STAYS
        )
    if spec.shape is None:
        raise ConversionError(
            what,
            f'the file does not say how many dimensions "{spec.name}" has, and that backend takes it for a scalar',
            "Export the model again with the shapes of its inputs and outputs, or leave it with this backend",
        )


def _tensors(config: ModelConfig, reader: _Reader) -> list[str]:
    """Leave inputs and outputs that the file has, with dims as the native backend compares them."""
    notes: list[str] = []
    controls = _controls(config.get("sequence_batching") or {})
    config["input"] = [row for row in config["input"] if row["name"] not in controls]
    specs = {spec.name: spec for spec in reader.signature.outputs}
    if text := [row["name"] for row in config["output"] if row["name"] not in specs]:
        notes.append(
            f"output left out: {', '.join(text)}: text is looked up behind the engine, by indices that the model gives"
        )
    config["output"] = [row for row in config["output"] if row["name"] in specs]
    if not config["output"]:
        raise ConversionError(
            f"{reader.label}: none of the outputs of its config is in the model",
            f"{', '.join(text)} is looked up behind the engine",
            f"Write an output that the model itself gives: {', '.join(specs)}",
        )
    for row in config["output"]:
        if changed := _exact(row, specs[row["name"]], int(config["max_batch_size"]) > 0):
            notes.append(f"output {row['name']}: dims {changed}, as the file has them: that backend takes no others")
    return notes


def _controls(sequences: Mapping[str, Any]) -> set[str]:
    """Inputs that the sequence batcher feeds, which are no inputs of requests."""
    names = {str(one.get("name")) for one in sequences.get("control_input") or []}
    return names | {str(one.get("input_name")) for one in sequences.get("state") or []}


def _exact(row: dict[str, Any], spec: TensorSpec, batched: bool) -> list[int] | None:
    """Give an output the dims that the file has; they, if they were others."""
    assert spec.shape is not None
    own = spec.dims[1:] if batched else list(spec.dims)
    if "reshape" in row:
        given = [int(size) for size in row["reshape"].get("shape") or []]
        if given != own and spec.shape:
            row["reshape"] = {"shape": own}
            return own
        return None
    if not spec.shape or [int(size) for size in row["dims"]] == own:
        return None
    row["dims"] = own
    return own


def _batch(config: ModelConfig, reader: _Reader) -> list[str]:
    """Write the batch into the dims where the native backend would take no batch of the model's."""
    size = int(config["max_batch_size"])
    if size == 0:
        return []
    specs = {spec.name: spec for spec in (*reader.signature.inputs, *reader.signature.outputs)}
    fixed = [spec for spec in specs.values() if spec.shape and isinstance(spec.shape[0], int)]
    if not fixed and reader.backend != "openvino":
        return []
    for row in (*config["input"], *config["output"]):
        spec = specs[row["name"]]
        first = spec.dims[0] if spec.shape else 1
        row["dims"] = [first, *map(int, row["dims"])]
        if "reshape" in row:
            row["reshape"] = {"shape": [first, *map(int, row["reshape"].get("shape") or [])]}
    config["max_batch_size"] = 0
    batcher = config.pop("dynamic_batching", None) is not None
    why = "takes batches of max_batch_size only" if reader.backend == "openvino" else "wants an open first dimension"
    lost = ", and requests are not joined into batches" if batcher else ""
    return [f"max_batch_size 0 with the batch in dims, for {reader.name} {why}; requests look as before{lost}"]


_STAYS = "Leave the model with this backend, or export it with tensors of another type"
