"""A size limit that takes what was used longest ago, and nothing that anybody uses or makes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from cache_worker import FILES, assert_whole, content, key, maker
from test_cache_kill import worker
from unified_backend.cache import Cache, holds
from unified_backend.cache.eviction import default_limit
from unified_backend.errors import ConfigError
from unified_backend.variables import cache_settings

SIZE = sum(len(content(0, name)) for name in FILES)


def filled(root: Path, count: int) -> list[Path]:
    """Entries 0, 1, ... that nobody holds, 0 used longest ago."""
    with Cache(root, limit=10**9) as cache:
        places = [cache.get_or_make(key(number), maker(number)).path for number in range(count)]
    for number, place in enumerate(places):
        used = time.time() - 1000 + number
        os.utime(place / "manifest.json", (used, used))
    return places


def left(root: Path) -> list[int]:
    return sorted(int(entry.manifest.facts["number"]) for entry in Cache(root).store.entries())


def test_what_was_used_longest_ago_goes_first(tmp_path):
    filled(tmp_path, 5)
    with Cache(tmp_path) as cache:
        cache.get_or_make(key(0), maker(0))
    with Cache(tmp_path, limit=3 * SIZE) as cache:
        evicted = cache.evict()
    assert [entry.manifest.facts["number"] for entry in evicted.removed] == [1, 2]
    assert evicted.size == 3 * SIZE
    assert left(tmp_path) == [0, 3, 4]
    assert not list((tmp_path / "making").iterdir())


def test_making_an_entry_makes_room_for_it(tmp_path):
    filled(tmp_path, 3)
    with Cache(tmp_path, limit=3 * SIZE) as cache:
        assert_whole(cache.get_or_make(key(3), maker(3)), 3)
    assert left(tmp_path) == [1, 2, 3]


def test_an_entry_larger_than_the_limit_serves_those_who_hold_it(tmp_path):
    with Cache(tmp_path, limit=SIZE - 1) as cache:
        entry = cache.get_or_make(key(0), maker(0))
        assert len(cache.evict().held) == 1
        assert_whole(entry, 0)
        assert cache.get_or_make(key(0), maker(0)).origin == "hit"
    assert Cache(tmp_path, limit=SIZE - 1).evict().size == 0


def test_what_a_live_process_holds_stays_until_it_is_killed(tmp_path):
    filled(tmp_path, 2)
    with worker("hold", tmp_path, 0) as process:
        assert process.stdout.readline() == "hit\n"
        evicted = Cache(tmp_path).evict(0)
        assert [entry.manifest.facts["number"] for entry in evicted.held] == [0]
        assert left(tmp_path) == [0]
        with Cache(tmp_path) as cache:
            assert_whole(cache.get_or_make(key(0), maker(0)), 0)
        process.kill()
        process.wait()
    assert Cache(tmp_path).evict(0).held == []
    assert left(tmp_path) == []


def test_what_is_being_made_stays_until_its_maker_is_killed(tmp_path):
    with worker("make-slowly", tmp_path, 0) as process:
        assert process.stdout.readline() == "making\n"
        Cache(tmp_path).evict(0)
        assert len(list((tmp_path / "making").iterdir())) == 1
        assert process.communicate(timeout=60)[0] == "made\n"
    assert left(tmp_path) == [0]
    with worker("make-slowly", tmp_path, 1) as process:
        assert process.stdout.readline() == "making\n"
        process.kill()
        process.wait()
    assert len(list((tmp_path / "making").iterdir())) == 1
    Cache(tmp_path).evict(10**9)
    assert not list((tmp_path / "making").iterdir())


def test_a_folder_just_made_is_left_to_its_maker(tmp_path):
    """It has yet to take hold of it, and then to give it its name."""
    for name in ("new-1", "new-2", "named"):
        (tmp_path / "making" / name).mkdir(parents=True)
    os.utime(tmp_path / "making" / "new-2", (time.time() - 100, time.time() - 100))
    Cache(tmp_path).evict()
    assert [path.name for path in (tmp_path / "making").iterdir()] == ["new-1"]


def test_what_no_reader_of_this_version_takes_counts_and_goes(tmp_path):
    places = filled(tmp_path, 4)
    manifest = json.loads((places[0] / "manifest.json").read_bytes())
    (places[0] / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
    os.utime(places[0] / "manifest.json", (1, 1))
    (places[1] / "manifest.json").unlink()
    os.utime(places[1], (2, 2))
    (tmp_path / "quarantine").mkdir()
    shutil.copytree(places[3], tmp_path / "quarantine/kept-1")
    os.utime(tmp_path / "quarantine/kept-1/manifest.json", (3, 3))
    assert Cache(tmp_path).evict(5 * SIZE).size == 5 * SIZE
    assert Cache(tmp_path).evict(3 * SIZE).size == 3 * SIZE
    assert (not places[0].exists(), not places[1].exists()) == (True, True)
    assert Cache(tmp_path).evict(2 * SIZE).size == 2 * SIZE
    assert not list((tmp_path / "quarantine").iterdir())
    assert left(tmp_path) == [2, 3]


STRANGE: dict[str, Callable[[Path], object]] = {
    "a link to an entry": lambda place: place.symlink_to(place.parent / "elsewhere"),
    "a file": lambda place: place.write_bytes(b"x" * 100),
    "an empty folder": lambda place: place.mkdir(),
    "a pipe for a manifest": lambda place: (place.mkdir(), os.mkfifo(place / "manifest.json")),
    "a link for a manifest": lambda place: (place.mkdir(), (place / "manifest.json").symlink_to("/etc/hostname")),
    "a folder for a manifest": lambda place: (place / "manifest.json").mkdir(parents=True),
}


@pytest.mark.parametrize("put", STRANGE.values(), ids=STRANGE)
def test_whatever_lies_among_the_entries_goes_and_is_not_waited_for(tmp_path, put, caplog):
    (place,) = filled(tmp_path, 1)
    strange = place.with_name("0" * 64)
    put(strange)
    for path in (strange / "manifest.json", strange):
        if os.path.lexists(path):
            os.utime(path, (1, 1), follow_symlinks=False)
    assert left(tmp_path) == [0]
    Cache(tmp_path).evict(0)
    assert Cache(tmp_path).store.places() == []
    assert Path("/etc/hostname").exists()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_evictor_that_is_late_leaves_the_new_entry(tmp_path, monkeypatch):
    """Between its look and its lock another evictor removes the entry, and a maker publishes it anew."""
    (place,) = filled(tmp_path, 1)
    flock = fcntl.flock
    other: list[Cache] = []

    def late(handle: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and not other:
            other.append(Cache(tmp_path))
            shutil.rmtree(place)
            other[0].get_or_make(key(0), maker(0))
        flock(handle, operation)

    monkeypatch.setattr(holds.fcntl, "flock", late)
    Cache(tmp_path).evict(0)
    assert len(other) == 1
    assert left(tmp_path) == [0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_what_this_user_may_not_remove_is_told_once_and_the_rest_goes(tmp_path):
    places = filled(tmp_path, 4)
    os.chmod(tmp_path, 0o755)  # noqa: PTH101
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 1000, 1000)
    for place in places[:2]:
        os.chown(place / "manifest.json", 0, 0)
    code = f"""
import logging, os, sys
from pathlib import Path
from unified_backend.cache import Cache
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
os.chdir({str(tmp_path)!r})
os.setgroups([])
os.setgid(1000)
os.setuid(1000)
print(len(Cache(Path(".")).evict(0).removed))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    log, count = done.stdout.splitlines()
    assert log.startswith("cache entries not evicted entries=")
    assert "Permission denied" in log
    assert count == "2"
    assert left(tmp_path) == [0, 1]


def test_readers_and_evictors_at_once_never_lose_what_they_read(tmp_path):
    """Four processes take, drop and evict entries, with room for two, and each looks at every byte it was given."""
    with ExitStack() as stack:
        arguments = [(tmp_path, seed, 4.0, 2 * SIZE) for seed in range(4)]
        processes = [stack.enter_context(worker("churn", *one)) for one in arguments]
        outs = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
    seen = [json.loads(out) for out in outs]
    assert sum(one["hit"] for one in seen) > 0
    assert sum(one["made"] for one in seen) > 8
    assert not list(tmp_path.glob("quarantine/*"))
    assert Cache(tmp_path, limit=2 * SIZE).evict().size <= 2 * SIZE


def test_the_limit_is_20_gb_or_a_fifth_of_the_disk(tmp_path, monkeypatch):
    total = shutil.disk_usage(tmp_path).total
    assert default_limit(tmp_path / "not" / "there" / "yet") == min(20 * 10**9, total // 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 0, 10**10))
    assert Cache(tmp_path).limit == 2 * 10**9
    assert Cache(tmp_path, limit=5).limit == 5


@pytest.mark.parametrize("text", ["20 bananas", "-1", "1e9", "GB", "5IB", "ten"])
def test_a_limit_that_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match=r"TRITON_UNIFIED_CACHE_MAX_SIZE is .*Correct the variable"):
        cache_settings({"TRITON_UNIFIED_CACHE_MAX_SIZE": text})


def test_a_cache_that_cannot_be_looked_through_fails_no_load(tmp_path, monkeypatch, caplog):
    def broken(path: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    caplog.set_level(logging.WARNING)
    assert_whole(Cache(tmp_path).get_or_make(key(0), maker(0)), 0)
    assert [record.getMessage() for record in caplog.records] == [
        f'cache not evicted folder={tmp_path} reason="Input/output error"'
    ]
