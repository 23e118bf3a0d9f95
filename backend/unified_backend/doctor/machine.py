"""Checks of the machine: shared memory, ports, cores, GPU, engines and tools."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from unified_backend import hosts
from unified_backend.doctor.finding import Finding, failed, ok, refused, warning
from unified_backend.engines import Engine
from unified_backend.errors import Refused, ToolchainError
from unified_backend.gpus import driver
from unified_backend.server.preflight import check_port
from unified_backend.toolchains.catalogue import Toolchain
from unified_backend.toolchains.environment import pip_command, python_of
from unified_backend.variables import toolchain_directory, toolchain_mode

__all__ = [
    "check_cores",
    "check_default_port",
    "check_engine",
    "check_gpu",
    "check_left_shared_memory",
    "check_perf_analyzer",
    "check_shared_memory",
    "check_toolchain",
]

_SHM = Path("/dev/shm")
_MIB = 2**20
# Triton's own name for a stub's region, and the one that `serve` gives it.
_REGIONS = ("triton_python_backend_shm_region_", "triton_unified_")
# A stub's region starts at 1 MiB and grows with the tensors in flight; Docker's default for all of them is 64 MiB.
_SHM_NONE, _SHM_LITTLE = 16 * _MIB, 256 * _MIB

_ON_A_GPU = ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda")  # a host does without them


def check_shared_memory(folder: Path = _SHM) -> Finding:
    """Whether tensors fit into shared memory, through which every one of them reaches a stub."""
    do = "Give the container more: `docker run --shm-size=2g`, in Kubernetes a memory emptyDir on /dev/shm"
    if not folder.is_dir():
        return failed(f"{folder} does not exist, and stubs get their tensors through it", do)
    space = os.statvfs(folder)
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    found = f"{free // _MIB} of {size // _MIB} MiB free"
    if free < _SHM_NONE:
        return failed(f"{found}; a stub takes 1 MiB to start with and grows with its tensors", do)
    if free < _SHM_LITTLE:
        return warning(f"{found}; a stub starts at 1 MiB, and a batch of large images needs hundreds", do)
    return ok(found)


def check_left_shared_memory(folder: Path = _SHM) -> Finding:
    """Whether servers that died left their regions behind: nothing else frees them before the next boot."""
    regions = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it went with its server while we looked
            stat = path.stat()
            # Who maps another user's region cannot be seen, so those are left out.
            if path.name.startswith(_REGIONS) and os.geteuid() in (0, stat.st_uid):
                regions[path] = stat.st_blocks * 512
    left = sorted(regions.keys() - _mapped(folder))
    if not left:
        return ok(f"{len(regions)} regions of stubs, all in use" if regions else "none")
    size = sum(regions[path] for path in left)
    names = ", ".join(path.name for path in left[:3]) + (", ..." if len(left) > 3 else "")
    return warning(
        f"{len(left)} regions of dead servers hold {size / _MIB:.1f} MiB: {names}",
        f"Remove them: rm {' '.join(map(str, left[:3]))}{' ...' if len(left) > 3 else ''}",
    )


def check_default_port(port: int, flag: str) -> Finding:
    """Whether a port that Triton listens on by default is free."""
    try:
        check_port("0.0.0.0", port, flag)
    except Refused as error:
        return refused(error, "warning")
    return ok(f"port {port} is free")


def check_cores() -> Finding:
    """How many cores there are, and how many this process may use."""
    usable, all_cores = hosts.cores(), os.cpu_count() or 1
    if usable < all_cores:
        return ok(
            f"{usable} of {all_cores} cores usable (affinity or cgroup quota); threads are counted by the {usable}"
        )
    return ok(f"{usable} cores")


def check_gpu() -> Finding:
    """Whether there is an NVIDIA GPU and a driver that answers."""
    found = driver()
    if found.broken:
        return warning(
            found.why_none,
            "Install the driver's user libraries, and compare `nvidia-smi` on the host; in Docker start the container "
            "with `--gpus all`",
        )
    if not found.gpus or found.cuda is None:
        return ok(f"none: {found.why_none}; engines run on the CPU")
    names = ", ".join(f"{gpu.name} ({gpu.architecture})" for gpu in found.gpus)
    return ok(f"{names}; driver for CUDA {'.'.join(map(str, found.cuda))}")


def check_engine(engine: Engine) -> Finding:
    """Whether an engine of the ladder can be used here."""
    gpu = next(iter(driver().gpus), None)
    if why := engine.unusable(gpu):
        if engine.name in _ON_A_GPU and gpu is None:
            return ok(f"not used: {why}")
        if engine.name in _ON_A_GPU:
            return warning(f"not used on this GPU: {why}", "Install what is missing, where models are to run on it")
        return failed(f"not usable: {why}", "Run `pip install 'triton-unified-backend[cpu]'` (or [gpu])")
    return ok(_describe(engine.name) or "usable")


def check_toolchain(toolchain: Toolchain) -> Finding:
    """Whether the models that a toolchain converts can be converted here."""
    folder, mode = toolchain_directory(), toolchain_mode()
    python, install = python_of(toolchain, folder), f"triton-unified toolchain install {toolchain.name}"
    if mode == "off":
        why = "TRITON_UNIFIED_TOOLCHAINS is off: only engines that take these models' files as they are serve them"
        return warning(why, "Unset the variable, unless this is meant")
    if python is not None:
        return ok(f"installed in {python.parent.parent}")
    if mode == "installed":
        return warning(f"not installed in {folder}, and TRITON_UNIFIED_TOOLCHAINS is installed", f"Run `{install}`")
    try:
        pip_command()
    except ToolchainError as error:
        return warning(f"not installed, and cannot be: {error.why}", error.do)
    return ok(f"not installed yet; the first model that needs it waits for it, or run `{install}`")


def check_perf_analyzer() -> Finding:
    """Whether Triton's load generator runs; only benchmarks need it."""
    do = "Only benchmarks need it: `make setup` in a checkout, or Triton's -sdk container"
    program = shutil.which("perf_analyzer", path=os.pathsep.join([f"{sys.prefix}/bin", os.environ.get("PATH", "")]))
    if program is None:
        return warning("not found", do)
    run = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    lines = (run.stdout + run.stderr).strip().splitlines()
    if not any("Version" in line for line in lines):  # it is printed on standard error
        return warning(f"{program} does not run: {lines[-1] if lines else f'exit code {run.returncode}'}", do)
    return ok(f"{lines[0]}, {program}")


def _mapped(folder: Path) -> set[Path]:
    """The files of `folder` that some process maps or holds open, as far as this user may look."""
    prefix, mapped = f"{folder}/", set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        for line in _lines(maps):
            position = line.find(prefix)
            if position >= 0:
                mapped.add(Path(line[position:].removesuffix(" (deleted)")))
    return mapped


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # the process has ended, or is another user's
        return ()


def _describe(engine: str) -> str | None:
    """Version and capabilities of an engine's library, where there is more to say than that it is there."""
    if package := {"openvino": "openvino", "litert": "ai-edge-litert", "mnn": "mnn", "ncnn": "ncnn"}.get(engine):
        return importlib.metadata.version(package)
    if engine != "onnxruntime":
        return None
    import onnxruntime

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return f"{onnxruntime.__version__}, providers {providers}"
