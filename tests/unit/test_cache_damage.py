"""Entries that are not what was published: seen, set aside and made again, whatever happened to them."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from unified_backend.cache import Cache, FileMemo, Key
from unified_backend.cache import memo as memo_module
from unified_backend.cache.manifest import MANIFEST, SIGNATURE, DamagedError, Manifest
from unified_backend.cache.signing import read_signer

KEY = Key("engine", {"model": "abc", "numbers": [1, 2.5, None]})
OTHER = Key("engine", {"model": "xyz"})
FILES = {"model.onnx": b"graph" * 10, "tables/words": bytes(range(64)), "empty": b""}


def make(folder: Path) -> dict[str, object]:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return {"shape": [1, 3, 224], "dtype": "FP32"}


def never(folder: Path) -> dict[str, object]:
    raise AssertionError("made again")


def assert_mended(root: Path, cache: Callable[[Path], Cache] = Cache) -> None:
    """The next to ask makes the entry again, and the one after that finds it whole."""
    assert cache(root).get_or_make(KEY, make).origin == "made"
    entry = cache(root).get_or_make(KEY, never)
    assert entry.facts == {"shape": [1, 3, 224], "dtype": "FP32"}
    assert {name: (entry.path / name).read_bytes() for name in FILES} == FILES


@pytest.fixture(params=["unsigned", "signed"])
def caches(request, tmp_path) -> Callable[[Path], Cache]:
    if request.param == "unsigned":
        return Cache
    secret = tmp_path / "secret"
    secret.write_bytes(b"only we know this one")
    return lambda root: Cache(root, signer=read_signer(secret))


def test_every_byte_that_flips_is_seen(tmp_path, caches):
    """A sample of all bytes of all files, the first and last of each among them, another bit each time."""
    root = tmp_path / "cache"
    chance = random.Random(5)
    place = caches(root).get_or_make(KEY, make).path
    files = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file() and path.stat().st_size)
    assert {MANIFEST, "model.onnx", "tables/words"} <= {path.as_posix() for path in files}
    for name in files:
        size = (place / name).stat().st_size
        for position in sorted({0, size - 1, *range(chance.randrange(9), size, 9)}):
            data = bytearray((place / name).read_bytes())
            # Made anew, a manifest may be a digit shorter: its times are others.
            data[min(position, len(data) - 1)] ^= 1 << chance.randrange(8)
            (place / name).write_bytes(data)
            entry = caches(root).get_or_make(KEY, make)
            assert entry.origin == "made", (name, position)
            assert {file: (entry.path / file).read_bytes() for file in FILES} == FILES
    assert caches(root).get_or_make(KEY, never).origin == "hit"


def swap_in(path: Path, put: Callable[[Path], object]) -> None:
    """Remove the file or folder, and put something else in its place."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    put(path)


def elsewhere(path: Path) -> Path:
    """A copy of it outside the cache."""
    root = next(parent for parent in path.parents if parent.name == "entries").parent
    copy = root.with_name(f"{path.name}-copy")
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copyfile(path, copy)
    return copy


def link_to_copy(path: Path) -> None:
    copy = elsewhere(path)
    swap_in(path, lambda there: there.symlink_to(copy))


def of_another_key(entry: Path) -> None:
    """Put the entry of another key, whole, where this one's was."""
    other = Cache(entry.parents[3]).get_or_make(OTHER, make).path
    swap_in(entry, lambda there: shutil.copytree(other, there))


def with_manifest(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Rewrite the manifest, without a new checksum."""

    def rewrite(entry: Path) -> None:
        value = json.loads((entry / MANIFEST).read_bytes())
        change(value)
        (entry / MANIFEST).write_text(json.dumps(value, indent=1))

    return rewrite


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a truncated file": lambda entry: os.truncate(entry / "model.onnx", 7),
    "an emptied file": lambda entry: os.truncate(entry / "model.onnx", 0),
    "a longer file": lambda entry: (entry / "model.onnx").write_bytes(FILES["model.onnx"] + b"\0"),
    "a missing file": lambda entry: (entry / "tables/words").unlink(),
    "a missing folder": lambda entry: shutil.rmtree(entry / "tables"),
    "an extra file": lambda entry: (entry / "tables/more").write_bytes(b""),
    "an extra link": lambda entry: (entry / "more").symlink_to(entry / "tables"),
    "a file renamed": lambda entry: (entry / "model.onnx").rename(entry / "model.ONNX"),
    "two files exchanged": lambda entry: (entry / "model.onnx").replace(entry / "tables/words"),
    "a link in place of a file": lambda entry: link_to_copy(entry / "model.onnx"),
    "a link in place of a folder": lambda entry: link_to_copy(entry / "tables"),
    "a folder in place of a file": lambda entry: swap_in(entry / "model.onnx", Path.mkdir),
    "a pipe in place of a file": lambda entry: swap_in(entry / "model.onnx", os.mkfifo),
    "no manifest": lambda entry: (entry / MANIFEST).unlink(),
    "an empty manifest": lambda entry: (entry / MANIFEST).write_bytes(b""),
    "a manifest that ends early": lambda entry: os.truncate(entry / MANIFEST, 200),
    "a manifest that is no object": lambda entry: (entry / MANIFEST).write_text("[1]"),
    "a manifest nested too deep": lambda entry: (entry / MANIFEST).write_text("[" * 100_000),
    "a manifest with an endless size": with_manifest(lambda value: value["files"]["empty"].update(size=float("inf"))),
    "a manifest that is a folder": lambda entry: swap_in(entry / MANIFEST, Path.mkdir),
    "a manifest that is a link": lambda entry: link_to_copy(entry / MANIFEST),
    "a manifest that is a pipe": lambda entry: swap_in(entry / MANIFEST, os.mkfifo),
    "another schema": with_manifest(lambda value: value.update(schema=1)),
    "other facts": with_manifest(lambda value: value["facts"].update(dtype="FP16")),
    "another maker": with_manifest(lambda value: value["made"].update(host="elsewhere")),
    "another key's fields": with_manifest(lambda value: value["key"].update(model="xyz")),
    "an entry of another key": of_another_key,
    "a link in place of the entry": link_to_copy,
    "a file in place of the entry": lambda entry: swap_in(entry, lambda there: there.write_bytes(b"x")),
    "an empty folder": lambda entry: swap_in(entry, Path.mkdir),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_set_aside_and_made_again(tmp_path, damage, caplog):
    root = tmp_path / "cache"
    damage(Cache(root).get_or_make(KEY, make).path)
    assert_mended(root)
    assert len(list((root / "quarantine").iterdir())) == 1
    assert Cache(root).store.usage.counts()["quarantined"] == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"cache entry damaged entry={KEY.digest[:12]} reason=")


NAMES = ["../out", "/etc/passwd", "a/../../b", "./a", "a//b", "a/", "", ".", "a\0b", MANIFEST, SIGNATURE]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_that_names_a_file_outside_its_folder_is_damage(name):
    value = json.loads(Manifest(KEY, {}, {}, {}).to_bytes())
    value["files"] = {name: {"size": 0, "sha256": "0"}}
    with pytest.raises(DamagedError):
        Manifest.from_bytes(json.dumps(value).encode(), KEY.digest)


@pytest.mark.parametrize("name", ["data:1", "back\\slash", "ä ö", "new\nline", "-", "...", "\udcff"])
def test_an_unusual_file_name_is_no_damage(tmp_path, name):
    Cache(tmp_path).get_or_make(KEY, lambda folder: (folder / name).write_bytes(b"x") and {})
    assert (Cache(tmp_path).get_or_make(KEY, never).path / name).read_bytes() == b"x"


def test_damage_found_by_many_at_once_is_mended_once_and_nobody_loses_the_new_entry(tmp_path):
    """Whoever sets a damaged entry aside late would move the new one from under those who have it."""
    for number in range(10):
        key = Key("engine", {"number": number})
        entry = Cache(tmp_path).get_or_make(key, make)
        (entry.path / "model.onnx").write_bytes(b"damaged")
        origins: list[str] = []
        start = threading.Barrier(6)

        def ask(key: Key = key, origins: list[str] = origins, start: threading.Barrier = start) -> None:
            start.wait()
            entry = Cache(tmp_path).get_or_make(key, make)
            if (entry.path / "model.onnx").read_bytes() == FILES["model.onnx"]:
                origins.append(entry.origin)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(origins) == ["hit"] * 5 + ["made"]
    assert Cache(tmp_path).store.usage.counts()["quarantined"] == 10


def test_a_reader_alone_sets_nothing_aside(tmp_path):
    """Only this key's maker may: between a reader's look and its move another may have published."""
    store = Cache(tmp_path).store
    entry = Cache(tmp_path).get_or_make(KEY, make)
    (entry.path / "model.onnx").write_bytes(b"damaged")
    assert store.read(KEY, repair=False) is None
    assert entry.path.exists()
    assert store.read(KEY) is None
    assert not entry.path.exists()


def test_a_repair_leaves_what_has_been_made_again_meanwhile(tmp_path):
    store = Cache(tmp_path).store
    place = Cache(tmp_path).get_or_make(KEY, make).path
    digest = FileMemo(Path("/dev/null/none")).digest
    store.repair(place, digest)
    assert place.exists()
    (place / "model.onnx").write_bytes(b"damaged")
    store.repair(place, digest)
    assert not place.exists()
    store.repair(place, digest)
    assert store.usage.counts()["quarantined"] == 1


def test_an_entry_that_goes_while_it_is_looked_at_is_not_damaged(tmp_path):
    """Nobody removes it under the eyes of who checks it."""
    store = Cache(tmp_path).store
    with Cache(tmp_path) as cache:
        place = cache.get_or_make(KEY, make).path
    memo = FileMemo(Path("/dev/null/none"))

    def evict_and_digest(path: Path) -> str:
        Cache(tmp_path).evict(0)
        return memo.digest(path)

    assert store.check(place, evict_and_digest).facts["dtype"] == "FP32"
    Cache(tmp_path).evict(0)
    with pytest.raises(FileNotFoundError):
        store.check(place, memo.digest)


def test_quarantine_keeps_the_latest_few_whatever_else_lies_there(tmp_path):
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine/notes").write_text("of a person")
    for size in range(1, 7):
        entry = Cache(tmp_path).get_or_make(KEY, make)
        os.truncate(entry.path / "model.onnx", size)
    assert Cache(tmp_path).get_or_make(KEY, make).origin == "made"
    kept = sorted((tmp_path / "quarantine").iterdir())
    assert [(path / "model.onnx").stat().st_size for path in kept] == [3, 4, 5, 6]


def test_running_out_of_file_handles_condemns_no_entry(tmp_path):
    Cache(tmp_path).get_or_make(KEY, make)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert Cache(tmp_path).store.read(KEY) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert Cache(tmp_path).get_or_make(KEY, never).origin == "hit"


def settled(entry: Path) -> Path:
    """The entry once its files are old enough to be remembered, and are."""
    newest = max(path.stat().st_ctime for path in entry.rglob("*"))
    time.sleep(max(0.0, newest + 2.1 - time.time()))
    assert Cache(entry.parents[3]).get_or_make(KEY, never).origin == "hit"
    return entry


def flip_under(path: Path) -> None:
    """Change a byte, and put size and mtime back as they were."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[3] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_flip_in_a_file_that_is_remembered_is_seen(tmp_path):
    entry = settled(Cache(tmp_path).get_or_make(KEY, make).path)
    inode = (entry / "model.onnx").stat().st_ino
    assert list((tmp_path / "memo").glob(f"*-{inode}.json"))
    flip_under(entry / "model.onnx")
    assert_mended(tmp_path)


def test_a_note_that_was_changed_is_not_believed(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"bytes")
    time.sleep(2.1)
    memo = FileMemo(tmp_path / "memo")
    digest = memo.digest(path)
    note = next((tmp_path / "memo").iterdir())
    note.write_text(note.read_text().replace(digest, "0" * 64))
    assert memo.digest(path) == digest


def test_a_forged_note_does_not_pass_changed_bytes_off_as_signed(tmp_path):
    """Who can write to the cache can write notes too; without the secret nobody believes them."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"only we know this one")
    root = tmp_path / "cache"
    entry = Cache(root, signer=read_signer(secret)).get_or_make(KEY, make)
    digest = memo_module.FileMemo(tmp_path / "none").digest(entry.path / "model.onnx")
    flip_under(entry.path / "model.onnx")
    time.sleep(2.1)
    # The forger has this code, and makes it remember the old digest for the new bytes.
    FileMemo(root / "memo").recall(entry.path / "model.onnx", "sha256", lambda: digest)
    assert Cache(root).get_or_make(KEY, never).origin == "hit"  # where nothing is signed this is no protection
    assert Cache(root, signer=read_signer(secret)).get_or_make(KEY, make).origin == "made"


def test_files_that_look_alike_to_the_system_are_read(tmp_path, monkeypatch):
    """In front of an object store, inode numbers begin anew at every mount, and times are whole seconds."""
    alike = {"device": 1, "inode": 2, "size": 5, "mtime_ns": 10**18, "ctime_ns": 10**18}
    monkeypatch.setattr(memo_module, "_identity", lambda path: dict(alike))
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"other")
    memo = FileMemo(tmp_path / "memo")
    assert memo.digest(tmp_path / "a") != memo.digest(tmp_path / "b")
