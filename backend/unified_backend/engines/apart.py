"""Builds an engine in a process of its own: native readers crash on some damaged files, and that must not be a server.

`python -m unified_backend.engines.apart` is that process; it reads one JSON object and prints one, as does any module
that `ask_apart` is given, through `answer_apart`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import unified_backend
from unified_backend import hosts
from unified_backend.amounts import amount
from unified_backend.engines import Canonical, Engine
from unified_backend.engines.guarded import Guarded
from unified_backend.errors import EngineError, UnifiedError
from unified_backend.settings import Settings
from unified_backend.tensors import Signature

__all__ = ["answer_apart", "ask_apart", "build_apart", "death"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAST_WORDS = 300  # characters of what a process said before it died


def build_apart(engine: Engine, canonical: Canonical, settings: Settings, folder: Path) -> Mapping[str, Any]:
    """Have `engine.build` write into `folder`, within the limits of time and memory that conversions have.

    Raises:
        EngineError: it cannot be built, or its process crashed, hung or took too much memory.
    """
    kind = type(engine.inner if isinstance(engine, Guarded) else engine)
    job = {
        "module": kind.__module__,
        "class": kind.__name__,
        "label": canonical.label,
        "path": str(canonical.path),
        "signature": canonical.signature.to_json(),
        "format": canonical.format,
        "inner": dict(canonical.inner),
        "part": canonical.part,
        "feeds": dict(canonical.feeds),
        "names": settings.names,
        "folder": str(folder),
    }
    what, do = f"{canonical.label}: {engine.name} cannot read the {canonical.format} model", "Copy or export it again"
    return dict(ask_apart("unified_backend.engines.apart", job, settings, what, do))


def ask_apart(
    module: str,
    job: Mapping[str, Any],
    settings: Settings,
    what: str,
    do: str,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a module's process answers to a job, within the limits of time and memory that conversions have.

    Args:
        what: failed if it crashes, for the message.
        do: the next step then.
        variables: of its environment, beside those of this process.

    Raises:
        EngineError: its own error; or it crashed, hung or took too much memory.
    """
    package = str(Path(unified_backend.__file__).parent.parent)
    paths = (package, *(path for path in sys.path if path), os.environ.get("PYTHONPATH"))
    try:
        # -P: what lies in the current directory is not what is imported.
        child = subprocess.run(
            [hosts.interpreter(), "-P", "-m", module],
            input=json.dumps({**job, "memory": settings.conversion_memory}),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=settings.conversion_seconds or None,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(variables or {})},
        )
    except subprocess.TimeoutExpired as error:
        why = f"it was not done after {error.timeout:.0f} s"
        raise EngineError(what, why, "Raise the parameter `conversion_seconds`, or export it again") from None
    except OSError as error:
        raise EngineError(what, f"no process could be started ({error})", "Mend that, and load it again") from None
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        raise EngineError(what, death(child), do) from None
    if "error" in answer:
        raise EngineError(*answer["error"])
    return dict(answer["facts"])


def answer_apart(work: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """In that process: do the job on standard input, and print what comes of it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    job = json.load(sys.stdin)
    # What native libraries print goes where it is not taken for the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if job["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    answer: dict[str, Any]
    try:
        answer = {"facts": work(job)}
    except UnifiedError as error:
        answer = {"error": [error.what, error.why, error.do]}
    except MemoryError:
        why = f"it takes more than {amount(job['memory'])}"
        answer = {"error": [f"{job['label']}: out of memory", why, "Raise the parameter `conversion_memory`"]}
    with answers:
        json.dump(answer, answers)


def death(child: subprocess.CompletedProcess[str]) -> str:
    """How a process ended that left no answer, with its last words."""
    code = child.returncode
    how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    words = " ".join(child.stderr.split())[-_LAST_WORDS:]
    return f"its process {how}" + (f": {words}" if words else "")


def _built(job: Mapping[str, Any]) -> Mapping[str, Any]:
    canonical = Canonical(
        job["label"],
        Path(job["path"]),
        "",
        Signature.from_json(job["signature"]),
        format=job["format"],
        inner=job["inner"],
        part=job["part"],
        feeds=job["feeds"],
    )
    settings = Settings(names=tuple((old, new) for old, new in job["names"]))
    engine: Engine = getattr(
        sys.modules.get(job["module"]) or __import__(job["module"], fromlist=["_"]), job["class"]
    )()
    return engine.build(canonical, settings, Path(job["folder"]))


if __name__ == "__main__":
    answer_apart(_built)
