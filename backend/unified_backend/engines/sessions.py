"""ONNX Runtime sessions: options from settings, and its errors in words a person can act on."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_backend.engines import Threads
from unified_backend.errors import ConfigError, SourceError
from unified_backend.settings import Settings

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "PROVIDERS",
    "exceptions",
    "library_digests",
    "open_session",
    "reason_of",
    "runtime_version",
    "session_options",
    "utf8_path",
]

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
PROVIDERS = ["CPUExecutionProvider"]


def session_options(settings: Settings, threads: Threads) -> onnxruntime.SessionOptions:
    """Options for a session of this model.

    Raises:
        ConfigError: ONNX Runtime refuses a library or an entry.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings on an optimised model are about its own passes
    options.intra_op_num_threads = threads.intra_op
    options.inter_op_num_threads = threads.inter_op
    if settings.execution_mode == "parallel":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = settings.enable_mem_arena
    options.enable_mem_pattern = settings.enable_mem_pattern
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[settings.graph_optimization])
    for library in settings.custom_op_library:
        with _refused("custom_op_library", library):
            options.register_custom_ops_library(library)
    for name, value in settings.session_options:
        with _refused(name, value):
            options.add_session_config_entry(name, value)
    return options


def runtime_version() -> str:
    """ONNX Runtime's version, with what its builder says of the build: those made at home share a number."""
    import onnxruntime

    return f"{onnxruntime.__version__} ({onnxruntime.get_build_info()})"


@contextmanager
def _refused(parameter: str, value: str) -> Iterator[None]:
    """Turn what ONNX Runtime says to a parameter's value into an error that names both."""
    try:
        yield
    except exceptions() as error:
        raise ConfigError(
            f'parameter "{parameter}" is "{value}"', reason_of(error), "Correct it in config.pbtxt, or leave it out"
        ) from None


def open_session(
    label: str, path: Path, options: onnxruntime.SessionOptions, providers: Sequence[Any] = PROVIDERS
) -> onnxruntime.InferenceSession:
    """The session of an ONNX file.

    Args:
        providers: execution providers, the best first; each a name, or a name with its options.

    Raises:
        SourceError: an operator, a type or a version that ONNX Runtime does not have.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(utf8_path(path), options, providers=providers)
    except exceptions() as error:
        reason = reason_of(error)
        raise SourceError(
            f"{label}: ONNX Runtime {onnxruntime.__version__} refuses the model", reason, _advice(reason)
        ) from None


def utf8_path(path: Path) -> str:
    """The path as ONNX Runtime takes it, whatever the locale: in Triton's stub Python spells `ä` as two surrogates."""
    return os.fsencode(path).decode()


def _advice(reason: str) -> str:
    lowered = reason.lower()
    if (
        "not a registered function/op" in lowered
        or "no op registered" in lowered
        or "could not find an implementation" in lowered
    ):
        return 'Name the library that has the operator with the parameter "custom_op_library", or export without it'
    if "opset" in lowered or "unsupported model ir" in lowered:
        return "Export with an older opset, or install a newer onnxruntime"
    return "Check the file with onnx.checker.check_model, and export it again"


def library_digests(settings: Settings) -> list[str]:
    """SHA-256 of each custom operator library.

    Raises:
        ConfigError: one of them cannot be read.
    """
    try:
        return [hashlib.sha256(Path(library).read_bytes()).hexdigest() for library in settings.custom_op_library]
    except OSError as error:
        raise ConfigError(
            f'parameter "custom_op_library" names {error.filename}',
            f"it cannot be read ({error.strerror})",
            "Give the full path of a shared library that the server can read",
        ) from None


def exceptions() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: unrelated classes, with no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotFound",
        "NotImplemented",
        "RuntimeException",
    )
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names if hasattr(state, name)))


def reason_of(error: Exception) -> str:
    """ONNX Runtime's message in one line, without its code, its C++ source position and signature."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed:\s*", "", text)
    node = re.match(r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: ", text)
    if node:
        text = text[node.end() :]
    text = re.sub(r"^/\S+:\d+ .*?\) ", "", text)
    text = re.sub(r"^.* was false\. (?=\S)", "", text)
    return f'{node[1]} "{node[2]}": {text}' if node else text
