"""What a measurement was taken on, and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.gpus import driver

__all__ = ["machine", "versions"]

_PACKAGES = (
    *("triton-unified-backend", "onnxruntime", "onnxruntime-gpu", "openvino", "mnn", "ncnn", "ai-edge-litert"),
    *("tensorrt", "tensorrt-rtx-cu12-bindings", "nvidia-dali-cuda130", "numpy"),
)


def machine() -> dict[str, Any]:
    """The host: `cpu`, `cores` that this process may use, `memory_bytes`, `gpu`, `system`."""
    return {
        "cpu": hosts.cpu_name() or platform.machine(),
        "cores": hosts.cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": [gpu.name for gpu in driver().gpus],
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(triton: str, tool: Path) -> dict[str, str]:
    """Of Triton, perf_analyzer, Python, and the packages that serve, where they are installed."""
    answer = subprocess.run([str(tool), "--version"], capture_output=True, text=True, check=False, timeout=60)
    analyzer = re.search(r"[Vv]ersion\s+(\S+)", answer.stdout + answer.stderr)
    found = {"triton": triton, "perf_analyzer": analyzer[1] if analyzer else "unknown"}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}
