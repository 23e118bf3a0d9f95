"""Makers and waiters that are killed: nobody is given a damaged entry, nobody hangs, nothing stays behind."""

from __future__ import annotations

import json
import logging
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cache_worker import assert_whole, key, maker
from unified_backend.cache import Cache, flight, holds
from unified_backend.cache.memo import FileMemo

WORKER = Path(__file__).with_name("cache_worker.py")


@contextmanager
def worker(command: str, root: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that does `command` to the cache, until the block ends."""
    line = [sys.executable, str(WORKER), command, str(root), *map(str, arguments)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> list[dict]:
    """What a worker printed, once it has ended well."""
    out, _ = process.communicate(timeout=250)
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


def assert_clean(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry is what was published, and what dead makers left goes with the next eviction."""
    store = Cache(root).store
    for entry in store.entries():
        store.check(entry.path, FileMemo(Path("/dev/null/none")).digest)
    assert len(list(store.entries())) == len(store.places())
    assert not list(root.glob("quarantine/*"))
    monkeypatch.setattr(holds, "_ABANDONED_SECONDS", 0)
    store.sweep()
    assert not list((root / "making").iterdir())


@pytest.mark.slow
def test_eight_ask_and_one_is_killed_a_hundred_times(tmp_path, monkeypatch):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    with worker("kill-rounds", tmp_path, seed, 100) as process:
        rounds = said(process)
    assert len(rounds) == 100
    makers_killed = waiters_killed = 0
    for found in rounds:
        victim, origins = str(found["victim"]), found["origins"]
        ends = found["statuses"]
        assert all(status == 0 for pid, status in ends.items() if pid != victim), (seed, found)
        assert ends[victim] in (0, -9), (seed, found)
        assert len(origins) >= 7, (seed, found)
        # Once, and a second time only in place of the one who died over it.
        killed_making = ends[victim] == -9 and int(victim) in found["makers"]
        assert len(found["makers"]) == 1 or (killed_making and len(found["makers"]) == 2), (seed, found)
        assert sorted(origins.values()).count("made") <= 1, (seed, found)
        makers_killed += killed_making
        waiters_killed += ends[victim] == -9 and not killed_making
    assert makers_killed, seed
    assert waiters_killed, seed
    assert_clean(tmp_path, monkeypatch)


def test_a_maker_killed_at_any_call_of_the_system_does_no_harm(tmp_path, monkeypatch):
    with worker("kill-everywhere", tmp_path) as process:
        tries = said(process)
    assert tries[-1]["status"] == 0
    assert all(one["status"] == -9 for one in tries[:-1])
    assert len(tries) > 40
    # Before the entry was in its place the next process made it, afterwards it did not.
    origins = [one["then"] for one in tries]
    assert origins == sorted(origins, reverse=True)
    assert origins.count("hit") > 1
    for root in tmp_path.iterdir():
        assert_clean(root, monkeypatch)


def test_who_waits_says_for_whom_and_takes_over_when_that_one_is_killed(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(flight, "_REPORT_SECONDS", 0.1)
    entries = []
    with worker("make-slowly", tmp_path, 1) as process:
        assert process.stdout.readline() == "making\n"
        thread = threading.Thread(target=lambda: entries.append(Cache(tmp_path).get_or_make(key(1), maker(1))))
        thread.start()
        while f'maker="pid {process.pid} on ' not in caplog.text:
            assert thread.is_alive()
            time.sleep(0.01)
        process.kill()
        thread.join(20)
    assert [entry.origin for entry in entries] == ["made"]
    assert_whole(entries[0], 1)
    waiting = [record.getMessage() for record in caplog.records if record.getMessage().startswith("waiting")]
    assert all(f"kind=engine key={key(1).digest[:12]} " in line and "seconds=" in line for line in waiting)


def test_who_waits_gets_what_the_maker_made(tmp_path):
    entries = []
    with worker("make-slowly", tmp_path, 1) as process:
        assert process.stdout.readline() == "making\n"
        thread = threading.Thread(target=lambda: entries.append(Cache(tmp_path).get_or_make(key(1), maker(1))))
        thread.start()
        process.communicate(timeout=60)
        thread.join(60)
    assert [entry.origin for entry in entries] == ["hit"]
    assert_whole(entries[0], 1)
