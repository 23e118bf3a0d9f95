"""What this host gives a process: cores it may really use, the instructions they have, and a Python to start."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["cores", "cpu_features", "cpu_name", "interpreter"]

# x86, then ARM, as /proc/cpuinfo spells them.
_STEERING = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "sme"),
)
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_V1_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_V1_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def cores() -> int:
    """Cores this process may use, at least 1: its affinity mask, cut to the cgroup's quota (a container's `--cpus`)."""
    allowed = len(os.sched_getaffinity(0))
    quota = _quota()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


@functools.cache
def interpreter() -> str:
    """An interpreter of this process's Python.

    Triton's stub embeds Python: there, sys.executable is whatever `python3` the PATH has, which may be another one.

    Raises:
        OSError: there is none.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = [Path(prefix) / "bin" / name for prefix in (sys.prefix, sys.base_prefix)]
    for candidate in filter(None, (sys.executable, *map(str, beside), shutil.which(name))):
        ask = [candidate, "-I", "-S", "-c", "import sys; print('python%d.%d' % sys.version_info[:2])"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, timeout=30).stdout.split() == [
                name.encode()
            ]:
                return candidate
    raise OSError(f"there is no {name} beside the Python library that runs here, or on PATH")


def _quota() -> float | None:
    """The cgroup's quota in cores, or None without one (cgroup v2 first, then v1)."""
    try:
        if _CPU_MAX.exists():
            limit, period = _CPU_MAX.read_text().split()
        else:
            limit, period = _V1_QUOTA.read_text().strip(), _V1_PERIOD.read_text().strip()
        return None if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def cpu_features() -> str:
    """The instruction sets that change what ONNX Runtime's optimiser makes of a graph.

    Layouts (NCHWc blocks by vector width), 8-bit types (by VNNI and AMX), and where float16 has no kernel, casts.
    """
    flags = _cpuinfo("flags", "Features").split()
    return ",".join((platform.machine(), *(flag for flag in _STEERING if flag in flags)))


def cpu_name() -> str:
    """The processor's model as its maker names it, for what was measured on it."""
    return _cpuinfo("model name", "CPU part")


def _cpuinfo(*names: str) -> str:
    """The first line of /proc/cpuinfo of one of these names (they differ by architecture), or an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), "")
