"""Where a cache may lie: read-only, another user's, without locks, full, or nowhere at all; the model is served."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cache_worker import assert_whole, key, maker
from loading_worker import answer, in_own_process, namespaces, write_model
from unified_backend.cache import Cache, flight, holds, making
from unified_backend.doctor.cache import check_locks, check_writable

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
mounts = pytest.mark.skipif(not namespaces(), reason="needs a mount namespace")
ALL_HIT = {"canonical": "hit", "batching": "hit", "engine": "hit"}
ALL_MADE = dict.fromkeys(ALL_HIT, "made")
USER = 1000


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are their owner's."""
    path = Path(tempfile.mkdtemp(prefix="places-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def model(open_path) -> Path:
    return write_model(open_path / "repository/net/1")


def assert_answers(found: dict) -> None:
    np.testing.assert_allclose(found["answer"], answer(), rtol=1e-4, atol=1e-4)


@root_only
def test_a_cache_that_root_filled_serves_another_user(open_path, model):
    cache = {"TRITON_UNIFIED_CACHE": str(open_path / "cache")}
    assert in_own_process({"folder": str(model)}, **cache)["lookups"] == ALL_MADE
    found = in_own_process({"folder": str(model), "user": USER}, **cache)
    assert found["lookups"] == ALL_HIT
    assert found["log"] == []
    assert_answers(found)


@mounts
def test_a_read_only_cache_that_was_filled_is_used_without_a_word(open_path, model):
    cache = open_path / "cache"
    in_own_process({"folder": str(model)}, TRITON_UNIFIED_CACHE=str(cache))
    read_only = f"mount --bind {cache} {cache}; mount -o remount,ro,bind {cache}; ! touch {cache}/new 2>/dev/null"
    found = in_own_process({"folder": str(model)}, read_only, TRITON_UNIFIED_CACHE=str(cache))
    assert found["lookups"] == ALL_HIT
    assert found["log"] == []
    assert_answers(found)


@mounts
def test_a_damaged_entry_of_a_read_only_cache_is_not_used(open_path, model):
    cache = open_path / "cache"
    in_own_process({"folder": str(model)}, TRITON_UNIFIED_CACHE=str(cache))
    (engine,) = cache.glob("entries/engine/*/*")
    os.truncate(engine / "model.onnx", 100)
    read_only = f"mount --bind {cache} {cache}; mount -o remount,ro,bind {cache}"
    found = in_own_process({"folder": str(model)}, read_only, TRITON_UNIFIED_CACHE=str(cache))
    assert found["lookups"] == {**ALL_HIT, "engine": "made"}
    assert "model.onnx has the wrong size" in " ".join(found["log"])
    assert_answers(found)


@pytest.mark.parametrize("first", ["C", "C.UTF-8"])
def test_a_file_name_is_the_same_in_every_locale(tmp_path, first):
    """Triton's stub has the C locale, where Python spells the bytes that are not ASCII otherwise."""
    folder = write_model(tmp_path / "repository/net/1", external="gewichte-ä.bin", unfit=True)
    cache = {"TRITON_UNIFIED_CACHE": str(tmp_path / "cache"), "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    one, other = (
        in_own_process({"folder": str(folder)}, **cache, LC_ALL=locale)
        for locale in sorted(["C", "C.UTF-8"], key=lambda locale: locale != first)
    )
    assert (one["lookups"], other["lookups"]) == (ALL_MADE, ALL_HIT)
    assert one["log"] == other["log"] == []
    assert_answers(other)


def lies_in(path: str) -> dict[str, str]:
    return {"TRITON_UNIFIED_CACHE": path}


@root_only
@pytest.mark.parametrize(
    ("environment", "at"),
    [
        (lies_in("{path}/anothers"), "{path}/anothers"),
        (lies_in("{path}/anothers/below"), "{path}/anothers/below"),
        (lies_in("{path}/a-file"), "{path}/a-file"),
        (lies_in("{path}/a-file/below"), "{path}/a-file/below"),
        (lies_in("/proc/none"), "/proc/none"),
        ({"HOME": "/root", "XDG_CACHE_HOME": ""}, "/root/.cache/triton-unified"),
        ({"HOME": "{path}/anothers", "XDG_CACHE_HOME": ""}, "{path}/anothers/.cache/triton-unified"),
        ({"HOME": "", "XDG_CACHE_HOME": ""}, "/.cache/triton-unified"),
    ],
)
def test_a_cache_that_cannot_be_written_is_done_without(open_path, model, environment, at):
    (open_path / "anothers").mkdir(mode=0o700)
    (open_path / "a-file").write_text("not a folder")
    (open_path / "temporary").mkdir()
    (open_path / "temporary").chmod(0o777)
    given = {name: value.format(path=open_path) for name, value in environment.items()}
    given["TMPDIR"] = str(open_path / "temporary")
    before = sorted(open_path.rglob("*"))
    found = in_own_process({"folder": str(model), "user": 54321}, **given)
    assert found["root"] == at.format(path=open_path)
    assert found["lookups"] == ALL_MADE
    assert len(found["log"]) == 1
    assert found["log"][0].startswith(f"cache not written folder={found['root']} reason=")
    assert_answers(found)
    assert sorted(open_path.rglob("*")) == before


@mounts
def test_a_read_only_root_leaves_shared_memory(open_path, model):
    """As `docker run --read-only --user 1000` without a volume: not even a temporary folder can be written."""
    read_only = f"""
        mount --bind {open_path} /mnt
        mount -o remount,ro,bind /
        mount --bind /tmp /tmp
        mount -o remount,ro,bind /tmp
        mount -t tmpfs tmpfs /dev/shm"""
    specification = {"folder": "/mnt/repository/net/1", "user": USER}
    found = in_own_process(specification, read_only, HOME="/", XDG_CACHE_HOME="")
    assert found["lookups"] == ALL_MADE
    assert len(found["log"]) == 1
    assert_answers(found)


def test_what_a_killed_process_left_in_the_temporary_folder_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(holds, "_ABANDONED_SECONDS", 0)
    making._root.cache_clear()
    dead, live = (Path(tempfile.mkdtemp(prefix=making._PREFIX)) for _ in range(2))
    hold = holds.Hold.take(live)
    assert making.private_folder().is_relative_to(tmp_path)
    assert (dead.exists(), live.exists()) == (False, True)
    assert hold
    hold.release()
    making._root.cache_clear()


def test_a_cache_without_locks_is_right_and_says_so(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    flight._warn_no_locks.cache_clear()

    def no_locks(handle: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    entries = []
    threads = [
        threading.Thread(target=lambda: entries.append(Cache(tmp_path).get_or_make(key(1), maker(1, 0.01))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries) == 4
    for entry in entries:
        assert_whole(entry, 1)
    assert Cache(tmp_path).get_or_make(key(1), maker(1)).origin == "hit"
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("no locks")]
    line = f'no locks folder={tmp_path / "locks"} reason="No locks available" next="two processes may make one entry"'
    assert set(said) == {line}
    assert len(said) <= len(threads)  # and not with every lookup
    assert "no lock can be taken" in check_locks(tmp_path).found
    # Nobody can be asked whether it is in use: it stays, above the limit.
    assert Cache(tmp_path).evict(0).removed == []
    assert_whole(Cache(tmp_path).get_or_make(key(1), maker(1)), 1)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_every_way_to_have_no_locks_is_known(tmp_path, monkeypatch, number):
    def no_locks(handle: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert_whole(Cache(tmp_path).get_or_make(key(1), maker(1)), 1)
    assert Cache(tmp_path).get_or_make(key(1), maker(1)).origin == "hit"


def test_doctor_looks_at_a_place_that_is_not_there_yet_or_is_a_file(tmp_path):
    assert check_writable(tmp_path / "not" / "there").found.startswith("writable")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in check_writable(tmp_path / "file").found


@mounts
@pytest.mark.parametrize("temporary", [False, True], ids=["cache", "cache and temporary folder"])
def test_a_disk_that_is_full_at_any_point_fails_no_load(open_path, model, temporary):
    """From hardly room for the first folder to room for all but the last file's last page."""
    (open_path / "disk").mkdir()
    sizes = [*range(4, 60, 4), 1024]
    found = in_own_process(
        {"folder": str(model), "disk": str(open_path / "disk"), "sizes": sizes, "temporary": temporary}, "true"
    )
    shortest = found[str(sizes[0])]["first"]
    assert len(shortest["log"]) >= 1
    for size in sizes:
        first, left, again = (found[str(size)][name] for name in ("first", "left", "again"))
        assert_answers(first)
        assert left == [], size
        written = [line for line in first["log"] if "No space left on device" in line]
        assert len(written) <= 1, size
        assert len(first["log"]) - len(written) <= (1 if temporary else 0), first["log"]
        assert_answers(again)
        assert again["log"] == [], size
    assert found["1024"]["first"]["log"] == []
    assert found["1024"]["again"]["lookups"] == ALL_HIT
