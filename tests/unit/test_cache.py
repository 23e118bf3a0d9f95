"""Entries: made once, whole or not there, checked before use."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unified_backend.cache import Cache, FileMemo, Key
from unified_backend.errors import CacheError

KEY = Key("engine", {"model": "abc", "options": {"a": 1, "b": [1, 2]}})
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


def make(folder: Path) -> dict[str, object]:
    (folder / "model.bin").write_bytes(b"weights")
    return {"answer": 42}


def never(folder: Path) -> dict[str, object]:
    raise AssertionError("made again")


def test_an_entry_is_made_once_and_found_by_another_cache(tmp_path):
    first = Cache(tmp_path).get_or_make(KEY, make)
    second = Cache(tmp_path).get_or_make(KEY, never)
    assert (first.origin, second.origin) == ("made", "hit")
    assert second.facts == {"answer": 42}
    assert (second.path / "model.bin").read_bytes() == b"weights"


@given(st.dictionaries(st.text(), JSON, max_size=5), st.text(), JSON)
def test_a_key_changes_with_every_field_and_not_with_their_order(fields, name, value):
    key = Key("engine", fields)
    assert Key("engine", dict(reversed(fields.items()))).digest == key.digest
    assert Key("canonical", fields).digest != key.digest
    if name not in fields or json.dumps(fields[name]) != json.dumps(value):
        assert Key("engine", {**fields, name: value}).digest != key.digest


def test_what_a_maker_raises_is_raised_and_nothing_is_left(tmp_path):
    def fails(folder: Path) -> dict[str, object]:
        (folder / "half").write_bytes(b"x")
        raise ValueError("no")

    cache = Cache(tmp_path)
    with pytest.raises(ValueError, match="no"):
        cache.get_or_make(KEY, fails)
    assert not list((tmp_path / "making").iterdir())
    assert cache.get_or_make(KEY, make).origin == "made"


def test_a_maker_that_cannot_write_is_an_error_with_a_next_step(tmp_path):
    def fails(folder: Path) -> dict[str, object]:
        raise OSError(28, "No space left on device", str(folder))

    with pytest.raises(CacheError, match=r"No space left.*TRITON_UNIFIED_CACHE"):
        Cache(tmp_path).get_or_make(KEY, fails)


def test_threads_that_ask_at_once_make_once(tmp_path):
    made, entries = [], []

    def slowly(folder: Path) -> dict[str, object]:
        made.append(1)
        time.sleep(0.2)
        return make(folder)

    def ask() -> None:
        entries.append(Cache(tmp_path).get_or_make(KEY, slowly))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(entry.origin == "hit" for entry in entries) == [False] + [True] * 7


def settle(path: Path) -> None:
    """Wait until the file's change time is old enough to be trusted."""
    time.sleep(max(0.0, 2.1 - (time.time() - path.stat().st_ctime)))


def test_an_unchanged_file_is_not_read_again(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 100)
    settle(path)
    calls = []
    memo = FileMemo(tmp_path / "memo")
    for _ in range(3):
        assert memo.recall(path, "fact", lambda: calls.append(1) or len(calls)) == 1
    assert FileMemo(tmp_path / "memo").recall(path, "fact", lambda: 2) == 1


def test_a_change_that_keeps_size_and_mtime_is_seen(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    settle(path)
    memo = FileMemo(tmp_path / "memo")
    before, stat = memo.digest(path), path.stat()
    path.write_bytes(b"new")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert memo.digest(path) != before


def test_a_file_just_written_is_not_remembered(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    FileMemo(tmp_path / "memo").digest(path)
    assert not (tmp_path / "memo").exists()
