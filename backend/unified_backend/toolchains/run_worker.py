"""Started in a toolchain's Python: binds itself to its limits, then runs one worker on one job.

`python -I run_worker.py MODULE EVENTS PARENT`, the job as JSON on standard input. JSON lines go to descriptor EVENTS:
`phase`, `result` or `error`. What the framework prints goes to standard output and error, the log. Only the standard
library may be imported here.

Each wall is one that the kernel may lack or a container forbid. Then the job runs without it, and the log says so.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import resource
import signal
import struct
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000  # linux/sched.h

# linux/landlock.h and the generic table of system calls, the same on x86-64 and ARM64.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
# Bits 4 to 12: remove and make directories, files, sockets, links. Then renaming between folders, and truncating.
_WRITING = {1: _WRITE_FILE | sum(1 << bit for bit in range(4, 13)), 2: 1 << 13, 3: _TRUNCATE}


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
    _leave_network_and_processes(libc)
    _write_nowhere_but_in(Path(job["folder"]), libc)
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
            with suppress(OSError):  # the disk may be full
                traceback.print_exc()
            parts = [str(getattr(error, name, ""))[:4000] for name in ("what", "why", "do")]  # of an error of ours
            tell("error", type=type(error).__name__, message=str(error)[:4000], parts=parts if all(parts) else None)
            raise SystemExit(1) from None


def _leave_network_and_processes(libc: ctypes.CDLL) -> None:
    """Go on in namespaces of its own: without a network, and where the kernel ends all that was started with the job.

    Where namespaces are forbidden, the environment has no proxy, converters no pip, and the group of processes is
    killed.
    """
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWPID) != 0:
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWPID) != 0:
            print(f"namespaces: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
            return
        _write(Path("/proc/self/setgroups"), "deny")
        _write(Path("/proc/self/uid_map"), f"{user} {user} 1")
        _write(Path("/proc/self/gid_map"), f"{group} {group} 1")
    # The namespace ends with its first process, which signals from within do not reach; the job is the second.
    for _ in range(2):
        if child := os.fork():
            _end_as(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_as(code: int) -> NoReturn:
    """End as a child did; signals are passed on as a shell does it."""
    code = code if code >= 0 else 128 - code
    if code > 128:
        with suppress(OSError):  # SIGKILL has its action always
            signal.signal(code - 128, signal.SIG_DFL)
        os.kill(os.getpid(), code - 128)
    os._exit(code)


def _write_nowhere_but_in(folder: Path, libc: ctypes.CDLL) -> None:
    """Forbid this process and its children to write, make or remove anything outside `folder`, by Landlock."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION)
    if version < 1:
        print(f"landlock: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return
    handled = sum(rights for since, rights in _WRITING.items() if version >= since)
    attributes = ctypes.c_uint64(handled)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(8), 0)
    for path, rights in ((folder, handled), (Path("/dev/null"), handled & (_WRITE_FILE | _TRUNCATE))):
        opened = os.open(path, os.O_PATH)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, opened))
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        os.close(opened)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
        print(f"landlock: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    os.close(ruleset)


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
