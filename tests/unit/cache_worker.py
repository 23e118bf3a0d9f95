"""What other processes do to a cache in the tests: `python cache_worker.py COMMAND ROOT ...`, nothing slow imported."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from unified_backend.cache import Cache, Entry, Key

FILES = ("model.onnx", "weights.bin", "tables/words")
DEADLINE = 60.0  # of a round: everybody who was not killed has the entry by then, also on a busy machine


def key(number: int) -> Key:
    """The key of one of many entries."""
    return Key("engine", {"number": number})


def content(number: int, name: str, size: int = 20_000) -> bytes:
    """What the file of this name holds in the entry of this number."""
    return hashlib.shake_256(f"{number} {name}".encode()).digest(size)


def maker(number: int, pause: float = 0.0, started: Callable[[], None] = lambda: None) -> Callable[[Path], dict]:
    """Makes the entry of this number, each file in two pieces with a pause between them."""

    def make(folder: Path) -> dict[str, int]:
        started()
        for name in FILES:
            data = content(number, name)
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            with path.open("wb", buffering=0) as file:
                file.write(data[:7000])
                time.sleep(pause)
                file.write(data[7000:])
        return {"number": number}

    return make


def assert_whole(entry: Entry, number: int) -> None:
    """The entry has every byte that its maker wrote, and no other file."""
    assert entry.facts == {"number": number}
    assert [(entry.path / name).read_bytes() for name in FILES] == [content(number, name) for name in FILES]
    below = {path.relative_to(entry.path).as_posix() for path in entry.path.rglob("*") if path.is_file()}
    assert below - {"manifest.json", "manifest.sig"} == set(FILES)


def hold(root: Path, number: int) -> None:
    """Take an entry and keep it until standard input ends, or for as long as it takes to be killed."""
    entry = Cache(root).get_or_make(key(number), maker(number))
    print(entry.origin, flush=True)
    sys.stdin.read()


def make_slowly(root: Path, number: int) -> None:
    """Be the maker of an entry until standard input ends."""

    def started() -> None:
        print("making", flush=True)
        sys.stdin.read()

    entry = Cache(root).get_or_make(key(number), maker(number, started=started))
    print(entry.origin, flush=True)


def kill_rounds(root: Path, seed: int, rounds: int) -> None:
    """Again and again, eight processes ask for one new key and one of them is killed at some moment.

    Prints a line of JSON a round: who was killed and what became of everybody.
    """
    chance = random.Random(seed)
    for number in range(rounds):
        marks, mark = os.pipe()
        report, reporter = os.pipe()
        pids = [_forked(lambda: _ask(root, number, mark, reporter)) for _ in range(8)]  # noqa: B023 - forked at once
        os.close(mark)
        os.close(reporter)
        victim = chance.choice(pids)
        time.sleep(chance.uniform(0, 0.12))
        os.kill(victim, signal.SIGKILL)
        ends = _ends(pids)
        with os.fdopen(marks) as begun, os.fdopen(report) as reported:
            made = [int(line) for line in begun]
            origins = dict(line.split() for line in reported)
        found = {
            "victim": victim,
            "statuses": {pid: ends.get(pid) for pid in pids},
            "makers": made,
            "origins": {int(pid): origin for pid, origin in origins.items()},
        }
        print(json.dumps(found), flush=True)


def kill_everywhere(root: Path) -> None:
    """Kill a maker at its first call of the system, another at its second, and so on until one gets through.

    Each in a cache of its own below `root`. Prints a line of JSON for each: the call, how the killed one ended, and how
    the next process came by the entry.
    """
    for number in range(1000):
        own = root / str(number)
        pid = _forked(lambda: _killed_at(number, own))  # noqa: B023 - forked at once
        status = _ends([pid])[pid]
        with Cache(own) as cache:
            entry = cache.get_or_make(key(number), maker(number))
            assert_whole(entry, number)
        print(json.dumps({"event": number, "status": status, "then": entry.origin}), flush=True)
        if status == 0:
            return


def churn(root: Path, seed: int, seconds: float, limit: int) -> None:
    """Take entries, one of eight at random, in a cache with room for about two, and look at every byte of each."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    seen = {"hit": 0, "made": 0}
    while time.monotonic() < end:
        with Cache(root, limit) as cache:
            for _ in range(chance.randint(1, 3)):
                number = chance.randrange(8)
                entry = cache.get_or_make(key(number), maker(number))
                seen[entry.origin] += 1
                if chance.random() < 0.2:
                    cache.evict(0)
                assert_whole(entry, number)
    print(json.dumps(seen), flush=True)


def _ask(root: Path, number: int, mark: int, reporter: int) -> None:
    def started() -> None:
        os.write(mark, f"{os.getpid()}\n".encode())

    entry = Cache(root).get_or_make(key(number), maker(number, 0.004, started))
    assert_whole(entry, number)
    os.write(reporter, f"{os.getpid()} {entry.origin}\n".encode())


def _killed_at(event: int, root: Path) -> None:
    calls = 0

    def count(name: str, _: object) -> None:
        nonlocal calls
        if name.startswith(("os.", "open", "fcntl.", "shutil.")) and name != "os.kill":
            calls += 1
            if calls > event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    assert_whole(Cache(root).get_or_make(key(event), maker(event)), event)


def _forked(function: Callable[[], None]) -> int:
    """The pid of a child that calls `function` and ends with status 0, or 1 if that fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    return pid


def _ends(pids: list[int]) -> dict[int, int | None]:
    """How each child ended (a negative number is a signal's); one that hangs is killed and ends with None."""
    ends: dict[int, int | None] = {}
    deadline = time.monotonic() + DEADLINE
    while len(ends) < len(pids):
        for pid in set(pids) - set(ends):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ends[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                ends[pid] = None
        time.sleep(0.002)
    return ends


if __name__ == "__main__":
    commands = {
        "hold": (hold, int),
        "make-slowly": (make_slowly, int),
        "kill-rounds": (kill_rounds, int, int),
        "kill-everywhere": (kill_everywhere,),
        "churn": (churn, int, float, int),
    }
    function, *types = commands[sys.argv[1]]
    function(Path(sys.argv[2]), *(parse(text) for parse, text in zip(types, sys.argv[3:], strict=True)))
