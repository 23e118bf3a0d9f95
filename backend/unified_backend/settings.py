"""config.pbtxt parameters, read once into one typed, validated value."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from unified_backend.errors import ConfigError
from unified_backend.gpus import Gpu
from unified_backend.stages.expression import Call, parse
from unified_backend.tensorrt_options import Profile, TensorRtOptions, tensorrt_parsers
from unified_backend.values import (
    SWITCH,
    at_least_one,
    batch_sizes,
    choice,
    count,
    options,
    parse_bytes,
    positive,
    renamed,
    separated,
    sizes,
    tensor_names,
    words,
)

__all__ = ["FIELDS", "PRECISIONS", "Settings", "is_session_option", "parameter_parsers", "read_settings"]

logger = logging.getLogger(__name__)

_TRITON_OWN = {"EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS", "TRITON_BATCH_STRATEGY_PATH"}
# ONNX Runtime's session configuration keys (onnxruntime_session_options_config_keys.h) start with one of these.
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "auto")
FIELDS = {"memory.enable_memory_arena_shrinkage": "arena_shrinkage"}  # of parameters whose names are no Python names
_SESSION_PREFIXES = ("session.", "optimization.", "ep.", "mlas.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a model's `parameters` may set; every field is a parameter of the same name.

    The parameters' page of the documentation is made of these lines, the parsers below and the defaults.

    Attributes:
        source: file or folder of the version folder to serve, where several would do.
        engine: this one engine and no other; `auto` takes the first that serves the model.
        build: when an engine that the cache lacks is built: `block` before the model is ready; `background` while the
            next rung serves, which it then replaces; `never` is `require_cached` by another name.
        autotune: on the CPU, time the engines that take the model, and serve by the fastest.
        openvino_hint: what OpenVINO tunes itself for: `latency` gives all of the instance's threads to one request,
            `throughput` is as OpenVINO chooses.
        graph_optimization: how far the graph is optimised, as ONNX Runtime names its levels.
        batching: how one execution's requests reach the engine: `loop` one by one, `concatenate` as one batch,
            `auto` whichever was quicker at warm-up.
        warm_up: batch sizes to run once before the model is ready; `auto` takes 1, the preferred sizes and the
            largest, if it is quick.
        intra_op_thread_count: threads inside one operator; 0 divides the cores (affinity and container quota) by the
            model's instances.
        inter_op_thread_count: threads across operators, used when `execution_mode` is parallel; 0 as above.
        execution_mode: operators one after another, or several at once.
        enable_mem_arena: keep ONNX Runtime's CPU memory arena.
        enable_mem_pattern: let ONNX Runtime plan memory once for each input shape.
        arena_shrinkage: give the unused memory of ONNX Runtime's arena back after every run.
        custom_op_library: paths of shared libraries with ONNX Runtime custom operators.
        session_options: `session.*`, `optimization.*`, `ep.*` and `mlas.*`: ONNX Runtime's session configuration
            entries, passed through as they are.
        require_cached: fail the load at once where an entry is missing, in place of building it.
        signature: key of the SavedModel or TensorFlow Lite signature, or name of the .pt2 program, to serve;
            `serving_default` where there is one.
        method: method of a TorchScript module to serve, in place of `forward`.
        arguments: values of arguments of a TorchScript module that no request gives, by name.
        num_threads: threads of a DALI pipeline, as Triton's DALI backend calls them; 0 as `intra_op_thread_count`.
        split_along_outer_axis: outputs of a DALI pipeline whose samples lose their first dimension, and become rows.
        stateful: serve a TorchScript module that changes its answer between identical calls, as it answers the first.
        tags: tags of the SavedModel's graph to serve; `serve` where nothing is said.
        inputs: tensors of a graph that are its inputs, `image:0[1,224,224,3]`; where the file tells no types and
            shapes (TorchScript, MXNet), these: `ids[-1,128]:INT64`.
        outputs: tensors of a graph that are its outputs, `scores:0`.
        names: other names to serve inputs and outputs under: `{"input_2": "audio"}`.
        opset: ONNX opset of a converted model, 7 to 18; 0 for the newest that every rung accepts.
        converter: the exporter's own options by their own names: `{"large_model": true}`,
            `{"inputs_as_nchw": ["image"]}`.
        allow_unsafe: run code that a model file carries (the byte code of a Keras Lambda layer).
        verify: `strict`: a model that differs from its source does not load; `warn`: it does, with a warning.
        tolerance: largest error accepted, relative to the output's largest value; by default that of its type.
        conversion_seconds: time limit of the process that converts the file, or first reads it.
        conversion_memory: memory limit of that process.
        batch_buckets: batch sizes that batches on a GPU are padded to; by default 1, 2, 4, 8, 12, 16, 24, 32, 48, ...
        contexts: batches in flight on a GPU: copies of one overlap with the compute of another.
        cuda_graph: replay a captured CUDA graph for each bucket, where the model allows it.
        precision: what the network computes in; as it came where nothing is said.
        exclude: patterns of nodes, outputs of nodes or operators that a lower precision leaves in FP32:
            `Resize,head_*`.
        calibration: folder of calibration data; `calibration` beside the version folders where nothing is said.
        calibration_method: how ranges are found; `dynamic` finds them in each run, and needs no data.
        tf32: let FP32 matrix products and convolutions round their inputs to 10 bits of mantissa.
        prefer_nhwc: convolutions with the channels last on CUDA; `auto` where the model runs so.
        cudnn_conv_algo_search: how cuDNN's convolutions are chosen, as ONNX Runtime has it; by default EXHAUSTIVE
            where shapes are fixed, else HEURISTIC.
        gpu_mem_limit: of ONNX Runtime's arena on the GPU; 0 for no limit.
        gpu_outputs: give outputs in memory of the GPU, to an ensemble's next step there or to CUDA shared memory.
        preprocess: the stage before the engine: `imagenet`, `image(size=224, ...)`, `audio(16000, mel=80)`, or a file
            of the version folder (`NAME.py`, `NAME.dali`); `feeds=INPUT` says for which input, where there are
            several. `preprocess.py`, if it is there, needs no parameter.
        postprocess: the stages behind the network: `softmax | topk(5, labels.txt)`; a file of the version folder may
            come last. `postprocess.py`, if it is there, needs no parameter.
        tensorrt: what the parameters of TensorRT say; see `TensorRtOptions`, whose fields they are.
        profiles: that TensorRT builds for, derived from the model and its completed config; set by no parameter.
        gpu: the GPU that the instance runs on, which its instance group sets and no parameter; None for the CPU.
    """

    source: str | None = None
    engine: str = "auto"
    build: str = "block"
    autotune: bool = False
    openvino_hint: str = "latency"
    graph_optimization: str = "all"
    batching: str = "auto"
    warm_up: tuple[int, ...] | None = None
    intra_op_thread_count: int = 0
    inter_op_thread_count: int = 0
    execution_mode: str = "sequential"
    enable_mem_arena: bool = True
    enable_mem_pattern: bool = True
    arena_shrinkage: bool = False
    custom_op_library: tuple[str, ...] = ()
    session_options: tuple[tuple[str, str], ...] = ()
    require_cached: bool = False
    signature: str | None = None
    method: str | None = None
    arguments: tuple[tuple[str, str], ...] = ()
    stateful: bool = False
    num_threads: int = 0
    split_along_outer_axis: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    opset: int = 0
    converter: tuple[tuple[str, str], ...] = ()
    allow_unsafe: bool = False
    verify: str = "strict"
    tolerance: float | None = None
    conversion_seconds: int = 1800
    conversion_memory: int = 8 * 1024**3
    batch_buckets: tuple[int, ...] = ()
    contexts: int = 3
    cuda_graph: bool = True
    precision: str | None = None
    exclude: tuple[str, ...] = ()
    calibration: str | None = None
    calibration_method: str = "min-max"
    tf32: bool = False
    prefer_nhwc: bool | None = None
    cudnn_conv_algo_search: str | None = None
    gpu_mem_limit: int = 0
    gpu_outputs: bool = False
    preprocess: tuple[Call, ...] = ()
    postprocess: tuple[Call, ...] = ()
    tensorrt: TensorRtOptions = dataclasses.field(default_factory=TensorRtOptions)
    profiles: tuple[Profile, ...] = ()
    gpu: Gpu | None = None

    @property
    def lowers(self) -> bool:
        """Whether the precision is set in the graph, which must be ONNX then if it is not left to `auto`."""
        return self.precision not in (None, "fp32", "tf32")


def parameter_parsers(engines: tuple[str, ...]) -> dict[str, Callable[[str], Any]]:
    """Parser of each parameter.

    Args:
        engines: names that `engine` may take beside `auto`.
    """
    return {
        "source": str,
        "engine": choice({name: name for name in ("auto", *engines)}),
        "build": choice({name: name for name in ("block", "background", "never")}),
        "autotune": choice(SWITCH),
        "openvino_hint": choice({name: name for name in ("latency", "throughput")}),
        "graph_optimization": choice({name: name for name in ("none", "basic", "extended", "all")}),
        "batching": choice({name: name for name in ("auto", "loop", "concatenate")}),
        "warm_up": batch_sizes,
        "intra_op_thread_count": count,
        "inter_op_thread_count": count,
        # 0 and 1 are what Triton's ONNX Runtime backend calls them.
        "execution_mode": choice(
            {"sequential": "sequential", "0": "sequential", "parallel": "parallel", "1": "parallel"}
        ),
        "enable_mem_arena": choice(SWITCH),
        "enable_mem_pattern": choice(SWITCH),
        "require_cached": choice(SWITCH),
        "memory.enable_memory_arena_shrinkage": choice({"cpu:0": True, "1": True, "0": False, "": False}),
        "custom_op_library": words,
        "signature": str,
        "tags": words,
        "inputs": tensor_names,
        "outputs": tensor_names,
        "names": renamed,
        "method": str,
        "arguments": options,
        "stateful": choice({"refuse": False, "allow": True}),
        "num_threads": count,
        "split_along_outer_axis": separated,
        "opset": count,
        "converter": options,
        "allow_unsafe": choice(SWITCH),
        "verify": choice({"strict": "strict", "warn": "warn"}),
        "tolerance": positive,
        "conversion_seconds": count,
        "conversion_memory": parse_bytes,
        "batch_buckets": sizes,
        "contexts": at_least_one,
        "cuda_graph": choice(SWITCH),
        "precision": choice({name: name for name in PRECISIONS}),
        "exclude": words,
        "calibration": str,
        "calibration_method": choice({name: name for name in ("min-max", "entropy", "percentile", "dynamic")}),
        "tf32": choice(SWITCH),
        "prefer_nhwc": choice({**SWITCH, "auto": None}),
        "cudnn_conv_algo_search": choice({name.lower(): name for name in ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")}),
        "gpu_mem_limit": parse_bytes,
        "gpu_outputs": choice(SWITCH),
        "preprocess": parse,
        "postprocess": parse,
        **tensorrt_parsers(),
    }


def read_settings(label: str, parameters: Mapping[str, str], engines: tuple[str, ...]) -> Settings:
    """The settings in a model's `parameters`.

    Args:
        label: the model, for messages (`detector/1`).
        parameters: name to string value.
        engines: names that `engine` may take beside `auto`.

    Raises:
        ConfigError: a value that its parameter cannot have.
    """
    parsers = parameter_parsers(engines)
    values: dict[str, Any] = {}
    session_options = []
    for name, text in sorted(parameters.items()):
        if parser := parsers.get(name):
            try:
                values[FIELDS.get(name, name)] = parser(text)
            except ValueError as error:
                raise ConfigError(
                    f'{label}: parameter "{name}" is "{text}"', str(error), f"Correct it in config.pbtxt: {_line(name)}"
                ) from None
        elif is_session_option(name):
            session_options.append((name, text))
        elif name not in _TRITON_OWN:
            _warn_unknown(label, name, tuple(parsers))
    values["require_cached"] = values.get("require_cached", False) or values.get("build") == "never"
    if values.get("precision") in ("fp32", "tf32"):
        _agree(label, parameters, values)
    tensorrt = TensorRtOptions(**{name: values.pop(name) for name in tensorrt_parsers().keys() & values.keys()})
    return Settings(**values, session_options=tuple(session_options), tensorrt=tensorrt)


def _agree(label: str, parameters: Mapping[str, str], values: dict[str, Any]) -> None:
    """Have `tf32` say what `precision` says of it.

    Raises:
        ConfigError: both are given, and contradict each other.
    """
    wanted = values["precision"] == "tf32"
    if values.setdefault("tf32", wanted) != wanted:
        raise ConfigError(
            f'{label}: parameters "precision" and "tf32" contradict each other',
            f'"precision" is "{values["precision"]}", and "tf32" is "{parameters["tf32"]}"',
            "Leave one of them out",
        )


def is_session_option(name: str) -> bool:
    """Whether a parameter is one of ONNX Runtime's session configuration entries, which are passed through."""
    return name.startswith(_SESSION_PREFIXES)


def _line(name: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "..." }} }}'


def _warn_unknown(label: str, name: str, known: tuple[str, ...]) -> None:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    logger.warning('unknown parameter ignored model=%s parameter="%s"%s', label, name, hint)
