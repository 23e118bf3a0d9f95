"""Started in a toolchain's Python: binds itself to its limits, then runs one worker on one job.

`python -I run_worker.py MODULE EVENTS PARENT`, the job as JSON on standard input. JSON lines go to descriptor EVENTS:
`phase`, `result` or `error`. What the framework prints goes to standard output and error, the log. Only the standard
library may be imported here.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h


def main(module: str, events: int, parent: int) -> None:
    """Run the job; what goes wrong is an event, and the exit code 1."""
    job = json.load(sys.stdin)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before we were bound to it
    # The kernel's own out-of-memory killer takes this process, and never the server.
    _write(Path("/proc/self/oom_score_adj"), "1000")
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["disk_bytes"], job["disk_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Without a network where this is allowed; elsewhere the environment has no proxy, and converters no pip.
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    with os.fdopen(events, "w") as pipe:

        def tell(event: str, **values: Any) -> None:
            pipe.write(json.dumps({"event": event, **values}) + "\n")
            pipe.flush()

        try:
            _own_package()
            work = importlib.import_module(module).work
            result = work(job, Path(job["folder"]), lambda phase, **_: tell("phase", phase=phase))
            tell("result", result=result)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
            traceback.print_exc()
            tell("error", type=type(error).__name__, message=str(error)[:4000])
            raise SystemExit(1) from None


def _own_package() -> None:
    """Make `unified_backend` importable without the packages beside it, which are those of the server."""
    package = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[package.name] = module
    spec.loader.exec_module(module)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
