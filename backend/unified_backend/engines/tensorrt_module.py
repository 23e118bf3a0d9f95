"""The Python module of TensorRT, or of TensorRT-RTX: found, imported, and its log kept for messages."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unified_backend.errors import EngineError

__all__ = ["PACKAGES", "TRITON_TYPES", "Log", "installed", "load_plugins", "module_of", "validity"]

logger = logging.getLogger(__name__)

# Engine -> modules that it may be in; the second of TensorRT-RTX is what the first imports, and comes alone with pip's
# packages tensorrt-rtx-cu12-bindings and -libs.
_MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu12-bindings (with tensorrt-rtx-cu12-libs)"}
# trt.DataType's names -> Triton's.
TRITON_TYPES = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    **{name: name for name in ("BF16", "INT8", "INT32", "INT64", "UINT8", "BOOL")},
}
_KEPT = 4  # of the last errors; the first of them is the cause


def installed(name: str) -> bool:
    """Whether the engine's module is there; nothing is imported."""
    return any(importlib.util.find_spec(module) for module in _MODULES[name])


def module_of(name: str) -> Any:
    """The engine's module.

    Raises:
        EngineError: it is not installed, or its libraries do not load.
    """
    failure = f"the package {PACKAGES[name]} is not installed"
    for module in _MODULES[name]:
        if importlib.util.find_spec(module) is None:
            continue
        try:
            found = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            failure = f"the module {module} does not load: {' '.join(str(error).split())}"
            continue
        if not hasattr(found, "Builder"):  # the public registry has stubs of the name
            failure = f"the module {module} is not TensorRT"
            continue
        sys.modules.setdefault(name, found)
        return found
    raise EngineError(f"{name} cannot be used", failure, f"Install {PACKAGES[name]}, or set the parameter `engine`")


class Log:
    """What TensorRT logs: its errors are kept, for it returns nothing where it fails.

    Attributes:
        sink: the object that TensorRT takes as its logger.
    """

    def __init__(self, trt: Any) -> None:
        kept: deque[str] = deque(maxlen=_KEPT)
        error = int(trt.ILogger.Severity.ERROR)

        class Sink(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= error:
                    kept.append(_plain(message))
                elif int(severity) == error + 1:
                    logger.debug("tensorrt %s", message)

        self._kept = kept
        self.sink = Sink()

    def reason(self, otherwise: str) -> str:
        """Why the last call failed."""
        reason = next(iter(self._kept), "") or otherwise
        self._kept.clear()
        return reason

    def forget(self) -> None:
        """What went well all the same is no reason for what fails later."""
        self._kept.clear()


def load_plugins(trt: Any, log: Log, libraries: Sequence[str]) -> None:
    """Make TensorRT's own plugins and those of the libraries known.

    Raises:
        EngineError: a library does not load.
    """
    trt.init_libnvinfer_plugins(log.sink, "")
    for library in libraries:
        handle = trt.get_plugin_registry().load_library(library) if Path(library).is_file() else None
        if handle is None:
            why = log.reason("it is not a library with TensorRT plugins" if Path(library).is_file() else "no such file")
            raise EngineError(f"the plugin library {library} does not load", why, "Correct the parameter `plugins`")


def validity(trt: Any, runtime: Any, plan: bytes) -> str:
    """Why an engine cannot run here, as TensorRT-RTX judges by its first bytes; "" if it can, or cannot be judged."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    verdict, diagnostics = runtime.get_engine_validity(plan)
    if verdict != trt.EngineValidity.INVALID:
        return ""
    named = [
        name.lower().replace("_", " ")
        for name, member in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(diagnostics) & int(member)
    ]
    return ", ".join(named) or "TensorRT-RTX does not say why"


def _plain(message: str) -> str:
    """A message without the function, the code and the source position that TensorRT puts around it."""
    text = " ".join(message.split())
    text = re.sub(r"^\S+: Error Code \d+: ", "", text)
    text = re.sub(r"^[^()]*? \(\[\S+ \S+\] ", "", text)
    text = re.sub(r"\s*In \w+ at /\S+", "", text)
    return text.strip(" ()") or message
