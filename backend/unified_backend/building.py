"""Fills the cache ahead of time: each model version is loaded in a process of its own, so that a crash is a result.

`python -m unified_backend.building MODEL_DIR VERSION` is that process; see `processes`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unified_backend import ahead
from unified_backend.cache import Cache
from unified_backend.errors import CacheError, ConfigError, Refused, UnifiedError
from unified_backend.gpus import gpu_of
from unified_backend.loading import open_cache
from unified_backend.models import describe, load
from unified_backend.pbtxt import gives_max_batch_size
from unified_backend.processes import Ended, Target, answer, each_apart
from unified_backend.repository import backend_of, our_config, version_folder, versions
from unified_backend.server.preflight import model_folders

__all__ = ["Outcome", "Target", "build", "config_to_build", "require_kept", "targets"]

_REQUIRE_CACHED = "TRITON_UNIFIED_REQUIRE_CACHED"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a model version.

    Attributes:
        version: None where the model has none, or is skipped.
        status: `built`, or taken from where it was (`hit`, `pulled`), or `failed`, or `skipped`: not ours.
        reason: why; of a loaded one, which engine and why that one.
        lookups: kind of entry -> `hit`, `pulled` or `made`.
        entries: digests of the entries' keys.
        log: what its process wrote to standard error.
    """

    model: str
    version: int | None
    status: Literal["built", "hit", "pulled", "failed", "skipped"]
    reason: str
    seconds: float = 0.0
    lookups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    entries: Sequence[str] = ()
    log: str = ""


def targets(repository: Path, models: Sequence[str], version: int | None) -> tuple[list[Target], list[Outcome]]:
    """What there is to build in a repository, and what of it is settled without: other backends', and the unreadable.

    Args:
        models: names of the models to build; all if there are none.
        version: the one version to build; all if None.

    Raises:
        Refused: a model or version asked for is not there, or is another backend's.
    """
    folders = {folder.name: folder for folder in model_folders(repository)}
    if missing := [name for name in models if name not in folders]:
        raise Refused(
            f"{repository} has no model {', '.join(missing)}", f"it has {', '.join(folders)}", "Name one of these"
        )
    found: list[Target] = []
    settled: list[Outcome] = []
    for name in models or folders:
        try:
            backend = backend_of(folders[name])
        except ConfigError as error:
            settled.append(Outcome(name, None, "failed", str(error)))
            continue
        if backend != "unified":
            if name in models:
                raise Refused(f"{name} is not built here", f"its backend is {backend}", "Name models of this backend")
            settled.append(Outcome(name, None, "skipped", f"its backend is {backend}"))
        elif there := versions(folders[name]):
            found += [Target(folders[name], number) for number in there if version in (None, number)]
        else:
            settled.append(Outcome(name, None, "failed", "it has no version folder"))
    if version is not None and not found:
        raise Refused(f"no model has a version {version}", "none of those to build does", "Name another version")
    return found, settled


def build(wanted: Sequence[Target], jobs: int, device: str | None = None) -> Iterator[Outcome | Sequence[Target]]:
    """Load every target as a server would, `jobs` at a time.

    Args:
        device: the architecture of a GPU that is not here (`sm89`): then engines for it are built, and not loaded.

    Returns:
        each outcome as it comes, and every ten seconds in which there is none, the targets that are being loaded.
    """
    for step in each_apart(wanted, jobs, "unified_backend.building", lambda _: [device] if device else []):
        yield _outcome(step) if isinstance(step, Ended) else step


def _outcome(ended: Ended) -> Outcome:
    name, version = ended.target.model_dir.name, ended.target.version
    result = ended.result or {"status": "failed", "reason": ended.reason}
    return Outcome(name, version, **result, seconds=ended.seconds, log=ended.log)


def _result(target: Target, device: str | None) -> dict[str, Any]:
    """Do what a load does, up to a loaded engine; fields of an Outcome."""
    label, folder = version_folder(target.model_dir, target.version)
    try:
        config = config_to_build(label, target.model_dir)
        given = gives_max_batch_size(target.model_dir / "config.pbtxt")
        with open_cache() as cache:
            if gpu := ahead.target(device) if device else None:
                described = describe(label, folder, config, cache, given, gpu)
                reason = ahead.build_ahead(described, cache)
            else:
                loaded = load(describe(label, folder, config, cache, given, gpu_of(config)), cache)
                loaded.runner.close()
                described, reason = loaded.described, f"{loaded.engine}: {loaded.reason}"
            require_kept(label, cache, described.report.entries)
    except UnifiedError as error:
        return {"status": "failed", "reason": str(error)}
    report = described.report
    origins = set(report.lookups.values())
    return {
        "status": "built" if "made" in origins else "pulled" if "pulled" in origins else "hit",
        "reason": reason,
        "lookups": report.lookups,
        "entries": report.entries,
    }


def config_to_build(label: str, model_dir: Path) -> dict[str, Any]:
    """The config of a model, as one that may be built: what must be there when a server starts is made here.

    Raises:
        ConfigError: it does not parse, or is not a config for this backend and this folder.
    """
    config = our_config(label, model_dir)
    for name in ("require_cached", "build"):
        (config.get("parameters") or {}).pop(name, None)
    os.environ.pop(_REQUIRE_CACHED, None)
    return config


def require_kept(label: str, cache: Cache, entries: Sequence[str]) -> None:
    """
    Raises:
        CacheError: what was built served this process only.
    """
    here = {place.name for place in cache.store.places()}
    if not here.issuperset(entries):
        raise CacheError(
            f"{label}: it was built, and is not in the cache {cache.root}",
            "the cache could not take it, as a warning above says",
            "Make the folder writable and large enough, and use a key that signs",
        )


def _main(model_dir: str, version: str, device: str | None = None) -> None:
    answer(lambda: _result(Target(Path(model_dir), int(version)), device))


if __name__ == "__main__":
    _main(*sys.argv[1:])
