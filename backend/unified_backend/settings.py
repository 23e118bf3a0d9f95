"""config.pbtxt parameters and environment variables, read once into one typed, validated value."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from unified_backend.errors import ConfigError

__all__ = [
    "CacheSettings",
    "Settings",
    "cache_settings",
    "default_max_batch_size",
    "is_session_option",
    "parse_bytes",
    "read_settings",
    "toolchain_directory",
    "toolchain_mode",
]

logger = logging.getLogger(__name__)

_TRITON_OWN = {"EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS", "TRITON_BATCH_STRATEGY_PATH"}
# ONNX Runtime's session configuration keys (onnxruntime_session_options_config_keys.h) start with one of these.
_SESSION_PREFIXES = ("session.", "optimization.", "ep.", "mlas.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a model's `parameters` may set; every field is a parameter of the same name.

    Attributes:
        source: file or folder inside the version folder to serve, where several would do.
        engine: `auto`, or the one engine to use and no other.
        graph_optimization: `none`, `basic`, `extended` or `all`, as ONNX Runtime names its levels.
        batching: how one execution's requests reach the engine: `loop` one by one, `concatenate` as one batch,
            `auto` whichever was faster at warm-up.
        warm_up: batch sizes to run once before the model is ready; None picks them, () runs none.
        intra_op_thread_count: threads inside one operator; 0 divides the cores by the model's instances.
        inter_op_thread_count: threads across operators, used when `execution_mode` is parallel; 0 as above.
        execution_mode: `sequential` or `parallel` operators.
        enable_mem_arena: keep ONNX Runtime's CPU memory arena.
        enable_mem_pattern: let ONNX Runtime plan memory once for each input shape.
        arena_shrinkage: give the arena's unused memory back after every run (`memory.enable_memory_arena_shrinkage`).
        custom_op_library: shared libraries with ONNX Runtime custom operators.
        session_options: ONNX Runtime session configuration entries, passed through as they are.
        require_cached: fail the load at once where an entry is missing, in place of building it.
        signature: key of the SavedModel or TensorFlow Lite signature, or name of the .pt2 program, to serve.
        method: method of a TorchScript module to serve; None for `forward`.
        arguments: (name, value as JSON text) of arguments that no request gives.
        stateful: serve a model that changes its answer between identical calls, as it answers the first.
        tags: tags of the SavedModel's graph to serve.
        inputs: tensors of a graph that are its inputs, in tf2onnx's notation: `input0:0[1,224,224,3]`.
        outputs: tensors of a graph that are its outputs.
        names: (name in the model, name it is served under) of inputs and outputs.
        opset: ONNX opset of a converted model; 0 for the newest that every rung accepts.
        converter: the exporter's own options by their own names, each with its value as JSON text.
        allow_unsafe: run code that a model file carries (the byte code of a Keras Lambda layer).
        verify: `strict`: a model that differs from its source does not load; `warn`: it does, with a warning;
            `report`, which no config can set: the errors are for the caller.
        tolerance: largest error accepted, relative to the output's largest value; None for the default of its type.
        conversion_seconds: time limit of a conversion.
        conversion_memory: memory limit of a conversion, in bytes.
    """

    source: str | None = None
    engine: str = "auto"
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


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """What the environment says of the cache.

    Attributes:
        directory: `TRITON_UNIFIED_CACHE`, else the user's cache directory.
        max_bytes: `TRITON_UNIFIED_CACHE_MAX_SIZE`; None leaves it to the disk's size.
        key_file: `TRITON_UNIFIED_CACHE_KEY_FILE`: signs entries, and only those so signed are used.
        remote: `TRITON_UNIFIED_REMOTE_CACHE`: URL or folder of the tier behind the disk.
        require_cached: `TRITON_UNIFIED_REQUIRE_CACHED`: what the parameter says, for every model.
    """

    directory: Path
    max_bytes: int | None = None
    key_file: Path | None = None
    remote: str | None = None
    require_cached: bool = False


def read_settings(label: str, parameters: Mapping[str, str], engines: tuple[str, ...]) -> Settings:
    """The settings in a model's `parameters`.

    Args:
        label: the model, for messages (`detector/1`).
        parameters: name to string value.
        engines: names that `engine` may take beside `auto`.

    Raises:
        ConfigError: a value that its parameter cannot have.
    """
    parsers: dict[str, Callable[[str], Any]] = {
        "source": str,
        "engine": _choice({name: name for name in ("auto", *engines)}),
        "graph_optimization": _choice({name: name for name in ("none", "basic", "extended", "all")}),
        "batching": _choice({name: name for name in ("auto", "loop", "concatenate")}),
        "warm_up": _batch_sizes,
        "intra_op_thread_count": _count,
        "inter_op_thread_count": _count,
        # 0 and 1 are what Triton's ONNX Runtime backend calls them.
        "execution_mode": _choice(
            {"sequential": "sequential", "0": "sequential", "parallel": "parallel", "1": "parallel"}
        ),
        "enable_mem_arena": _choice(_SWITCH),
        "enable_mem_pattern": _choice(_SWITCH),
        "require_cached": _choice(_SWITCH),
        "memory.enable_memory_arena_shrinkage": _choice({"cpu:0": True, "1": True, "0": False, "": False}),
        "custom_op_library": _list,
        "signature": str,
        "tags": _list,
        "inputs": _tensor_names,
        "outputs": _tensor_names,
        "names": _renamed,
        "method": str,
        "arguments": _options,
        "stateful": _choice({"refuse": False, "allow": True}),
        "opset": _count,
        "converter": _options,
        "allow_unsafe": _choice(_SWITCH),
        "verify": _choice({"strict": "strict", "warn": "warn"}),
        "tolerance": _positive,
        "conversion_seconds": _count,
        "conversion_memory": parse_bytes,
    }
    values: dict[str, Any] = {}
    session_options = []
    for name, text in sorted(parameters.items()):
        if parser := parsers.get(name):
            try:
                values[name] = parser(text)
            except ValueError as error:
                raise ConfigError(
                    f'{label}: parameter "{name}" is "{text}"', str(error), f"Correct it in config.pbtxt: {_line(name)}"
                ) from None
        elif is_session_option(name):
            session_options.append((name, text))
        elif name not in _TRITON_OWN:
            _warn_unknown(label, name, tuple(parsers))
    if "memory.enable_memory_arena_shrinkage" in values:
        values["arena_shrinkage"] = values.pop("memory.enable_memory_arena_shrinkage")
    return Settings(**values, session_options=tuple(session_options))


def is_session_option(name: str) -> bool:
    """Whether a parameter is one of ONNX Runtime's session configuration entries, which are passed through."""
    return name.startswith(_SESSION_PREFIXES)


def cache_settings(environment: Mapping[str, str] | None = None) -> CacheSettings:
    """The cache that the environment variables describe; an empty variable is as good as none.

    Raises:
        ConfigError: a variable that cannot be what it is.
    """
    given = os.environ if environment is None else environment

    return CacheSettings(
        _variable(given, "TRITON_UNIFIED_CACHE", _path, _users_cache()),
        _variable(given, "TRITON_UNIFIED_CACHE_MAX_SIZE", parse_bytes, None),
        _variable(given, "TRITON_UNIFIED_CACHE_KEY_FILE", _path, None),
        _variable(given, "TRITON_UNIFIED_REMOTE_CACHE", str, None),
        _variable(given, "TRITON_UNIFIED_REQUIRE_CACHED", _choice(_SWITCH), False),
    )


def _variable(given: Mapping[str, str], name: str, parse: Callable[[str], Any], default: Any) -> Any:
    text = given.get(name, "").strip()
    try:
        return parse(text) if text else default
    except ValueError as error:
        raise ConfigError(f'{name} is "{text}"', str(error), "Correct the variable, or unset it") from None


def toolchain_mode(environment: Mapping[str, str] | None = None) -> str:
    """Whether toolchains may be used, and installed when they are needed: `TRITON_UNIFIED_TOOLCHAINS`.

    Returns:
        `auto` (the default): used, and installed; `installed`: only those already there are used; `off`: none is.

    Raises:
        ConfigError: the variable is none of these.
    """
    text = (os.environ if environment is None else environment).get("TRITON_UNIFIED_TOOLCHAINS", "").strip()
    modes = ("auto", "installed", "off")
    if (text.lower() or "auto") not in modes:
        raise ConfigError(
            f'TRITON_UNIFIED_TOOLCHAINS is "{text}"',
            f"it must be one of {', '.join(modes)}",
            "Correct the variable, or unset it",
        )
    return text.lower() or "auto"


def toolchain_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Where toolchains are: `TRITON_UNIFIED_TOOLCHAIN_DIR` (an image's, for example), else a folder of the cache's.

    Raises:
        ConfigError: the variable, or that of the cache, is no path.
    """
    given = os.environ if environment is None else environment
    return _variable(given, "TRITON_UNIFIED_TOOLCHAIN_DIR", _path, None) or (
        cache_settings(given).directory / "toolchains"
    )


def default_max_batch_size(environment: Mapping[str, str] | None = None) -> int:
    """max_batch_size for a batchable model whose config names none: `TRITON_UNIFIED_MAX_BATCH_SIZE`, else 32.

    Raises:
        ConfigError: the variable is not a number of 1 or more.
    """
    text = (os.environ if environment is None else environment).get("TRITON_UNIFIED_MAX_BATCH_SIZE", "32")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f'TRITON_UNIFIED_MAX_BATCH_SIZE is "{text}"',
            "it is not a number of 1 or more",
            "Set it to one, or unset it",
        )
    return int(text)


def parse_bytes(text: str) -> int:
    """Bytes in a size such as `20GB` (10^9), `512MiB` (2^20) or `1000`.

    Raises:
        ValueError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    if match is None or (match[3] and not match[2]):
        raise ValueError('it must be a size such as "20GB", "512MiB" or a number of bytes')
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2] or " "))


def _users_cache() -> Path:
    """The user's cache directory; of one without a home, where Docker puts the home of one it does not know: at `/`."""
    try:
        path = platformdirs.user_cache_path("triton-unified")
    except RuntimeError:  # older ones answer with a relative path
        path = Path()
    return path if path.is_absolute() else Path("/.cache/triton-unified")


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # no such user, or no home
        raise ValueError(str(error)) from None


_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _choice(allowed: Mapping[str, Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if text.strip().lower() not in allowed:
            raise ValueError(f"it must be one of {', '.join(allowed)}")
        return allowed[text.strip().lower()]

    return parse


def _count(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError("it must be a whole number of 0 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError("it must be a number above 0, such as 1e-3")
    return value


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _tensor_names(text: str) -> tuple[str, ...]:
    """tf2onnx's list of tensors; the commas inside a shape's brackets separate nothing."""
    return tuple(part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip())


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("it must be a JSON object")
    return value


def _renamed(text: str) -> tuple[tuple[str, str], ...]:
    pairs = _object(text)
    if not all(isinstance(new, str) and new for new in pairs.values()) or len(set(pairs.values())) < len(pairs):
        raise ValueError("it must map each name in the model to another name, all of them different")
    return tuple(sorted(pairs.items()))


def _options(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, json.dumps(value, sort_keys=True)) for key, value in _object(text).items()))


def _batch_sizes(text: str) -> tuple[int, ...] | None:
    if text.strip().lower() in ("auto", ""):
        return None
    if text.strip().lower() in ("off", "none", "0", "false"):
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError('it must be "auto", "off" or batch sizes such as "1,4,8"')
    return tuple(int(part) for part in parts)


def _line(name: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "..." }} }}'


def _warn_unknown(label: str, name: str, known: tuple[str, ...]) -> None:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    logger.warning('unknown parameter ignored model=%s parameter="%s"%s', label, name, hint)
