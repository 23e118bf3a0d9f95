"""Everything about a machine and a repository that makes Triton hang, answer wrongly or fail unexplained, checked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from unified_backend.doctor import cache, fleet, machine, python, repository
from unified_backend.doctor.finding import Finding, Status, failed, refused
from unified_backend.errors import ConfigError, UnifiedError
from unified_backend.toolchains.catalogue import TOOLCHAINS
from unified_backend.variables import cache_settings

__all__ = ["Finding", "Status", "examine"]

Check = Callable[[], Finding]

# What a check may break on and the others still go on.
_BREAKS = (OSError, UnifiedError, ValueError, LookupError, ImportError, RuntimeError, AttributeError)


def examine(
    models: Path | None = None, backends: Path | None = None, executable: Path | None = None
) -> Iterator[tuple[str, Finding]]:
    """Run every check that applies; yields its name and what it found.

    Args:
        models: model repository to look into.
        backends: backends directory that the backend was installed into.
        executable: `tritonserver` to use; found by itself if None.
    """
    for name, check in _checks(models, backends, executable):
        try:
            yield name, check()
        except (*_BREAKS, subprocess.SubprocessError) as error:
            yield name, failed(f"the check itself broke: {type(error).__name__}: {error}", "Report it, with this line")


def _checks(models: Path | None, backends: Path | None, executable: Path | None) -> Iterator[tuple[str, Check]]:
    yield "server", partial(python.check_server, executable)
    if server := python.server_or_none(executable):
        yield "python", partial(python.check_python, server)
        yield "numpy", partial(python.check_numpy, server)
        yield "libpython", partial(python.check_libpython, server)
    yield "protobuf", python.check_protobuf
    if backends is not None:
        yield "installation", partial(python.check_installation, backends)
    yield "working directory", lambda: python.check_working_directory(Path.cwd())
    if models is not None:
        yield "repository", partial(repository.check_path, models)
        if models.is_dir():
            yield "repository entries", partial(repository.check_entries, models)
            yield "claimed names", partial(repository.check_claimed_names, models)
    yield from _cache_checks(models)
    yield "shared memory", machine.check_shared_memory
    yield "shared memory left", machine.check_left_shared_memory
    for service, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        yield f"{service} port", partial(machine.check_default_port, port, f"--{service}-port")
    yield "cores", machine.check_cores
    yield "gpu", machine.check_gpu
    yield from _engine_checks()
    for toolchain in TOOLCHAINS.values():
        yield f"toolchain {toolchain.name}", partial(machine.check_toolchain, toolchain)
    yield "perf_analyzer", machine.check_perf_analyzer


def _cache_checks(models: Path | None) -> Iterator[tuple[str, Check]]:
    try:
        settings = cache_settings()
    except ConfigError as error:
        finding = refused(error)
        yield "cache settings", lambda: finding
        return
    yield "cache place", partial(cache.check_place, settings.directory, models)
    yield "cache writable", partial(cache.check_writable, settings.directory)
    yield "cache locks", partial(cache.check_locks, settings.directory)
    if settings.key_file:
        yield "cache key", partial(fleet.check_key, settings.key_file)
    if settings.remote:
        yield "remote cache", partial(fleet.check_remote, settings.remote)


def _engine_checks() -> Iterator[tuple[str, Check]]:
    try:
        from unified_backend.loading import ENGINES
    except ImportError as error:
        why = f"the backend cannot be imported: {error}"
        yield "engines", lambda: failed(why, "Install triton-unified-backend again")
        return
    for name, engine in ENGINES.items():
        yield f"engine {name}", partial(machine.check_engine, engine)
