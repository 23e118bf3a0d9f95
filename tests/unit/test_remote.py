"""The remote tier on real stores: pulled before it is made, pushed after; whatever is wrong there, the load goes on."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from object_stores import LOCAL, ObjectStore, gcs_server
from unified_backend.cache import Cache, Entry, Key
from unified_backend.cache.flight import being_made
from unified_backend.cache.making import Make
from unified_backend.cache.manifest import FileRecord, Manifest
from unified_backend.cache.remote import Remote
from unified_backend.cache.remote.objects import Objects
from unified_backend.errors import CacheError

KEY = Key("engine", {"model": "abc"})
MEGABYTE = 1 << 20
SECRETS = ("wrong-key-id", "wrong-secret", "not-a-secret", "tester")


def make(folder: Path) -> dict[str, object]:
    (folder / "sub").mkdir()
    (folder / "sub" / "model.bin").write_bytes(b"weights" * 1000)
    (folder / "empty").write_bytes(b"")
    return {"answer": 42}


def never(folder: Path) -> dict[str, object]:
    raise AssertionError("made again")


@pytest.fixture(params=["s3", "folder"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store of each kind, which this process and its children reach."""
    if request.param == "s3":
        return use(monkeypatch, request.getfixturevalue("s3"))
    return reach(monkeypatch, f"file://{tmp_path}/store", {})


@pytest.fixture
def s3_url(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, where a test is about what only a server can do."""
    return use(monkeypatch, s3)


def use(monkeypatch: pytest.MonkeyPatch, s3: ObjectStore) -> str:
    return reach(monkeypatch, s3.url(), s3.environment)


def reach(monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str]) -> str:
    for name, value in {**environment, "TRITON_UNIFIED_REMOTE_CACHE": url}.items():
        monkeypatch.setenv(name, value)
    return url


def host(root: Path, url: str) -> Cache:
    """A host of the fleet: its own disk, the common store."""
    return Cache(root, remote=Remote(url, root))


def wait_for_the_pusher(cache: Cache) -> str:
    """Wait until the pusher that the cache started has ended, having sent all; its log."""
    deadline = time.monotonic() + 60
    log = cache.root / "push.log"
    while cache.outbox.waiting() or being_made(cache.root / "locks", "outbox"):
        text = log.read_text()
        assert "entries left" not in text and time.monotonic() < deadline, text
        time.sleep(0.05)
    return log.read_text()


def made_and_pushed(cache: Cache, key: Key = KEY, work: Make = make) -> Entry:
    """An entry made by a host, and in the store."""
    entry = cache.get_or_make(key, work)
    wait_for_the_pusher(cache)
    return entry


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("manifest.")
    }


def test_what_one_host_made_the_next_one_pulls(url, tmp_path):
    with host(tmp_path / "a", url) as first:
        made = first.get_or_make(KEY, make, "detector/1")
        assert "outcome=pushed" in wait_for_the_pusher(first)
        pulled = host(tmp_path / "b", url).get_or_make(KEY, never)
        assert (made.origin, pulled.origin) == ("made", "pulled")
        assert pulled.facts == {"answer": 42}
        assert files(pulled.path) == files(made.path)
    # From then on it is here: the store may go.
    assert Cache(tmp_path / "b").get_or_make(KEY, never).origin == "hit"


def test_an_entry_is_pulled_from_google_cloud_storage(tmp_path, monkeypatch, caplog):
    folder = reach(monkeypatch, str(tmp_path / "stored" / "bucket" / "prefix"), {})
    made = made_and_pushed(host(tmp_path / "a", folder))
    with gcs_server(tmp_path / "stored") as environment:
        url = reach(monkeypatch, "gs://bucket/prefix", environment)
        second = host(tmp_path / "b", url)
        assert files(second.get_or_make(KEY, never).path) == files(made.path)
        assert second.remote and second.remote.keys() == [("engine", KEY.digest)]
        assert not warnings(caplog)
        # This server takes no writes of that kind: as good as a user who may only read.
        assert second.get_or_make(Key("engine", {"model": "new"}), make).origin == "made"
        assert ["operation=write" in text for text in warnings(caplog)] == [True]


def test_a_large_file_goes_and_comes_in_parts(url, tmp_path):
    data = random.Random(0).randbytes(40 * MEGABYTE + 1)

    def make_large(folder: Path) -> dict[str, object]:
        (folder / "weights").write_bytes(data)
        return {}

    made_and_pushed(host(tmp_path / "a", url), KEY, make_large)
    second = host(tmp_path / "b", url)
    assert (second.get_or_make(KEY, never).path / "weights").read_bytes() == data
    assert not [left for left in (tmp_path / "b" / "partial").iterdir() if left.stat().st_size > 100]


def test_of_eight_that_push_at_once_one_wins_whole(url, tmp_path):
    places = []
    for number in range(8):
        content = bytes([number]) * 100_000

        def make_own(folder: Path, content: bytes = content) -> dict[str, object]:
            (folder / "one").write_bytes(content)
            (folder / "two").write_bytes(content[::-1] + b"x")
            return {"made": content[:1].hex()}

        places.append(Cache(tmp_path / str(number)).get_or_make(KEY, make_own).path)
    barrier, won = threading.Barrier(8), []

    def push(number: int) -> None:
        remote = Remote(url, tmp_path / str(number))
        barrier.wait()
        if remote.push(places[number], KEY):
            won.append(number)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    entry = host(tmp_path / "reader", url).get_or_make(KEY, never)
    assert files(entry.path) == files(places[won[0]])
    assert entry.facts == {"made": f"{won[0]:02x}"}


def blob(objects: Objects) -> str:
    """The one blob that is not empty."""
    return next(name for name in objects.names("blobs") if objects.size(name))


def change(objects: Objects, path: str, how: Callable[[bytes], bytes]) -> None:
    content = objects.get(path)
    assert content is not None
    objects.put(path, how(content))


def manifest(objects: Objects) -> str:
    return objects.names("entries")[0]


def forged(record: FileRecord, name: str = "sub/model.bin") -> Callable[[bytes], bytes]:
    """An envelope whose manifest is in order but for one file."""

    def edit(envelope: bytes) -> bytes:
        value = json.loads(envelope)
        original = Manifest.from_bytes(value["manifest"].encode(), KEY.digest)
        manifest = dataclasses.replace(original, files={**original.files, name: record})
        return json.dumps({**value, "manifest": manifest.to_bytes().decode()}).encode()

    return edit


NOWHERE = "0" * 64
DAMAGES: dict[str, Callable[[Objects], object]] = {
    "a flipped byte": lambda o: change(o, blob(o), lambda data: b"W" + data[1:]),
    "a truncated blob": lambda o: change(o, blob(o), lambda data: data[:10]),
    "an empty blob": lambda o: change(o, blob(o), lambda data: b""),
    "a longer blob": lambda o: change(o, blob(o), lambda data: data + b"x"),
    "a missing blob": lambda o: o.delete(blob(o)),
    "a manifest that is no JSON": lambda o: change(o, manifest(o), lambda data: data[:-20]),
    "a manifest of nothing": lambda o: change(o, manifest(o), lambda data: b""),
    "a manifest with other values": lambda o: change(o, manifest(o), lambda data: b'{"manifest": 7}'),
    "a digest that is a path": lambda o: change(o, manifest(o), forged(FileRecord(7000, "../../../stolen"))),
    "a size below zero": lambda o: change(o, manifest(o), forged(FileRecord(-1, NOWHERE))),
    "a file outside": lambda o: change(o, manifest(o), forged(FileRecord(7000, NOWHERE), "../stolen")),
    "a file where a folder is": lambda o: change(o, manifest(o), forged(FileRecord(0, NOWHERE), "sub")),
    "a name too long": lambda o: change(o, manifest(o), forged(FileRecord(0, NOWHERE), "x" * 300)),
    "a name that is no text": lambda o: change(o, manifest(o), forged(FileRecord(0, NOWHERE), "\ud800")),
    "a flipped bit in the facts": lambda o: change(o, manifest(o), lambda data: data.replace(b"42", b"43")),
    "a huge size": lambda o: change(o, manifest(o), forged(FileRecord(1 << 62, NOWHERE))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_made_here_and_repaired_by_the_push(url, tmp_path, damage, caplog):
    made_and_pushed(host(tmp_path / "a", url))
    damage(Objects(url))
    with host(tmp_path / "b", url) as second:
        assert second.get_or_make(KEY, make).origin == "made"
        assert ["NOT USED" in text for text in warnings(caplog)] == [True]
        wait_for_the_pusher(second)
    assert host(tmp_path / "c", url).get_or_make(KEY, never).origin == "pulled"
    assert not list(tmp_path.rglob("stolen"))


def test_an_entry_of_another_key_is_not_taken(url, tmp_path, caplog):
    other = Key("engine", {"model": "other"})
    made_and_pushed(host(tmp_path / "a", url), other)
    objects = Objects(url)
    envelope = objects.get(f"entries/engine/{other.digest}.json")
    assert envelope
    objects.put(f"entries/engine/{KEY.digest}.json", envelope)
    assert host(tmp_path / "b", url).get_or_make(KEY, make).origin == "made"
    assert "another key" in warnings(caplog)[0]


@pytest.mark.parametrize("wrong", [{"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, {"AWS_ACCESS_KEY_ID": "wrong-key-id"}])
def test_wrong_credentials_are_one_warning_that_does_not_name_them(s3_url, tmp_path, monkeypatch, caplog, wrong):
    caplog.set_level("DEBUG", "unified_backend")
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    cache = host(tmp_path, s3_url)
    assert cache.get_or_make(KEY, make).origin == "made"
    assert cache.get_or_make(Key("engine", {"model": "second"}), make).origin == "made"
    (warning,) = warnings(caplog)
    assert "403 Forbidden" in warning
    assert s3_url in warning
    sent = list(cache.push_waiting())
    assert [one.outcome for one in sent] == ["failed", "failed"] or being_made(tmp_path / "locks", "outbox")
    log = caplog.text + (tmp_path / "push.log").read_text()
    assert not [secret for secret in SECRETS if secret in log]


def test_a_store_that_failed_is_left_alone_by_the_next_process_until_its_pause_is_over(
    s3_url, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "unified_backend")
    keys = [Key("engine", {"model": name}) for name in "abc"]
    other = host(tmp_path / "other", s3_url)
    for key in keys:
        other.get_or_make(key, make)
    wait_for_the_pusher(other)
    root = tmp_path / "here"
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
        assert host(root, s3_url).get_or_make(keys[0], make).origin == "made"
    # It would answer now; the second process has been told not to ask.
    assert host(root, s3_url).get_or_make(keys[1], make).origin == "made"
    assert "left alone" in caplog.text
    assert len(warnings(caplog)) == 1
    forget_failures(root)
    assert host(root, s3_url).get_or_make(keys[2], never).origin == "pulled"
    assert "answers again" in caplog.text


def test_who_may_only_read_pulls_and_is_not_held_up_by_what_it_may_not(s3, s3_url, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "unified_backend")
    writer = host(tmp_path / "writer", s3_url)
    made_and_pushed(writer)
    later = Key("engine", {"model": "later"})
    made_and_pushed(writer, later)
    for name, value in s3.reader.items():
        monkeypatch.setenv(name, value)
    reader = host(tmp_path / "reader", s3_url)
    assert reader.get_or_make(KEY, never).origin == "pulled"
    assert not warnings(caplog)
    assert reader.get_or_make(Key("engine", {"model": "new"}), make).origin == "made"
    (warning,) = warnings(caplog)
    assert "operation=write" in warning
    assert "403 Forbidden" in warning
    # What it could not send does not keep it from reading.
    assert reader.get_or_make(later, never).origin == "pulled"


def test_a_reader_that_finds_damage_makes_its_own_and_may_still_read(s3, s3_url, tmp_path, monkeypatch, caplog):
    writer = host(tmp_path / "writer", s3_url)
    second = Key("engine", {"model": "second"})
    made_and_pushed(writer)
    DAMAGES["a flipped byte"](Objects(s3_url))

    def make_other(folder: Path) -> dict[str, object]:
        (folder / "other").write_bytes(b"other")
        return {}

    made_and_pushed(writer, second, make_other)
    for name, value in s3.reader.items():
        monkeypatch.setenv(name, value)
    reader = host(tmp_path / "reader", s3_url)
    assert reader.get_or_make(KEY, make).origin == "made"
    assert reader.get_or_make(second, never).origin == "pulled"


def test_a_store_that_is_gone_or_silent_costs_seconds_once(own_s3, tmp_path, monkeypatch, caplog):
    url = use(monkeypatch, own_s3)
    own_s3.freeze(True)
    try:
        began = time.monotonic()
        assert host(tmp_path / "a", url).get_or_make(KEY, make).origin == "made"
        assert time.monotonic() - began < 25  # one question, 5 s
        assert len(warnings(caplog)) == 1
        began = time.monotonic()
        for number in range(50):
            assert host(tmp_path / "a", url).get_or_make(Key("engine", {"n": number}), make).origin == "made"
        assert time.monotonic() - began < 50  # fifty questions would be 250 s
    finally:
        own_s3.freeze(False)
    own_s3.stop()
    began = time.monotonic()
    assert host(tmp_path / "b", url).get_or_make(KEY, make).origin == "made"
    assert time.monotonic() - began < 25
    assert len(warnings(caplog)) == 2


@pytest.mark.slow
def test_a_store_that_falls_silent_in_the_middle_of_a_fetch_is_given_up(gate, s3_url, tmp_path, monkeypatch, caplog):
    made_and_pushed(host(tmp_path / "a", s3_url), KEY, make_weights)
    monkeypatch.setenv("AWS_ENDPOINT", f"http://{LOCAL}:{gate.port}")
    gate.limit(received=20 * MEGABYTE)
    began = time.monotonic()
    assert host(tmp_path / "b", s3_url).get_or_make(KEY, make).origin == "made"
    assert gate.shut.is_set()
    assert time.monotonic() - began < 60  # nothing for 10 s, asked for once or twice
    assert len(warnings(caplog)) == 1


def test_a_metadata_service_that_never_answers_costs_seconds(s3_url, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with socket.create_server((LOCAL, 0)) as silent:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://{LOCAL}:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert host(tmp_path, s3_url).get_or_make(KEY, make).origin == "made"
        assert time.monotonic() - began < 60
    assert len(warnings(caplog)) == 1


def make_weights(folder: Path) -> dict[str, object]:
    (folder / "weights").write_bytes(random.Random(1).randbytes(160 * MEGABYTE))
    return {}


def pull(root: str, url: str) -> None:
    host(Path(root), url).get_or_make(KEY, never)


def test_a_fetch_that_was_killed_goes_on_where_it_was(gate, s3_url, tmp_path, monkeypatch):
    made = made_and_pushed(host(tmp_path / "a", s3_url), KEY, make_weights)
    monkeypatch.setenv("AWS_ENDPOINT", f"http://{LOCAL}:{gate.port}")
    gate.limit(received=100 * MEGABYTE)
    puller = multiprocessing.get_context("spawn").Process(target=pull, args=(str(tmp_path / "b"), s3_url))
    puller.start()
    assert gate.shut.wait(60)
    puller.kill()
    puller.join()
    gate.open()
    before = gate.received
    pulled = host(tmp_path / "b", s3_url).get_or_make(KEY, never)
    assert files(pulled.path) == files(made.path)
    # Of 100 MB four parts of 8 MB at most were under way.
    assert gate.received - before < (160 - 100 + 4 * 8 + 8) * MEGABYTE


def test_a_push_that_was_killed_leaves_nothing_torn_and_the_next_one_ends_it(gate, s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT", f"http://{LOCAL}:{gate.port}")
    first = host(tmp_path / "a", s3_url)
    gate.limit(sent=60 * MEGABYTE)
    made = first.get_or_make(KEY, make_weights)
    assert gate.shut.wait(60)
    for pid in pushers(tmp_path / "a"):
        os.kill(pid, 9)
    gate.open()
    assert Objects(s3_url).names("entries") == []
    assert host(tmp_path / "b", s3_url).remote.pull(KEY, empty(tmp_path / "c")) is None  # type: ignore[union-attr]
    first.outbox.send_in_background()
    wait_for_the_pusher(first)
    assert files(host(tmp_path / "d", s3_url).get_or_make(KEY, never).path) == files(made.path)


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def pushers(root: Path) -> Iterator[int]:
    """Ids of the pushers of this cache."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().endswith(f"push\0{root}\0".encode()):
                yield int(entry.name)
        except OSError:
            continue


USER = """
import sys
from pathlib import Path
from unified_backend.cache import Cache, Key
from unified_backend.cache.remote import Remote

def make(folder):
    (folder / "model").write_bytes(bytes(30 << 20))
    return {}

root, url = Path(sys.argv[1]), sys.argv[2]
print(Cache(root, remote=Remote(url, root)).get_or_make(Key("engine", {"model": "abc"}), make).origin)
"""


def test_a_pusher_keeps_nobody_waiting_and_outlives_who_started_it(gate, s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT", f"http://{LOCAL}:{gate.port}")
    root = tmp_path / "a"
    with monkeypatch.context() as stub:
        # As inside Triton's stub: what sys.executable says is no Python of ours.
        program = f"import sys; sys.executable = '/bin/true'\n{USER}"
        stub.setenv("PATH", "/nowhere")
        # `capture_output` reads to the end of the pipes, which a child that inherited them would keep open.
        gate.limit(sent=10 * MEGABYTE)  # only the pusher sends so much
        ended = subprocess.run(
            [sys.executable, "-c", program, root, s3_url], capture_output=True, text=True, check=True, timeout=60
        )
    assert ended.stdout == "made\n"
    assert gate.shut.wait(60)
    gate.open()
    wait_for_the_pusher(Cache(root))
    assert host(tmp_path / "b", s3_url).get_or_make(KEY, never).origin == "pulled"


def test_a_pusher_that_ends_before_its_starter_is_no_zombie(s3_url, tmp_path):
    made_and_pushed(host(tmp_path, s3_url))
    deadline = time.monotonic() + 30
    while children := Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children").read_text():
        zombies = [pid for pid in children.split() if " Z " in Path(f"/proc/{pid}/stat").read_text()]
        if not zombies:
            break
        assert time.monotonic() < deadline, zombies
        time.sleep(0.05)


def test_a_folder_that_is_not_there_fails_no_load(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("where the folder's mount point should be")
    url = reach(monkeypatch, str(tmp_path / "file" / "cache"), {})
    assert host(tmp_path / "a", url).get_or_make(KEY, make).origin == "made"
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("url", "why"), [("ftp://host/x", "begins with ftp://"), ("s3://", "recogni"), ("az://container/x", "Account")]
)
def test_a_url_that_can_never_work_is_refused_with_what_would(tmp_path, url, why):
    with pytest.raises(CacheError, match=rf"cannot be used.*{why}.*s3://BUCKET/PREFIX"):
        host(tmp_path, url)


def test_secrets_in_a_url_are_not_shown(tmp_path, caplog):
    with pytest.raises(CacheError) as refused:
        host(tmp_path, "ftp://user:hidden@host/x?token=hidden")
    assert "hidden" not in str(refused.value)


def test_what_could_not_be_pushed_goes_with_the_next_load(s3_url, tmp_path, monkeypatch):
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
        first = host(tmp_path / "a", s3_url)
        first.get_or_make(KEY, make)
        wait_for_failure(first)
        first.push_in_background()  # within the pause nobody is started
        assert not list(pushers(tmp_path / "a"))
    forget_failures(tmp_path / "a")
    later = host(tmp_path / "a", s3_url)
    assert later.get_or_make(KEY, never).origin == "hit"
    (tmp_path / "a" / "push.log").unlink()
    later.push_in_background()
    wait_for_the_pusher(later)
    assert host(tmp_path / "b", s3_url).get_or_make(KEY, never).origin == "pulled"


def test_where_locks_do_not_work_entries_are_pushed_all_the_same(tmp_path, monkeypatch):
    url = reach(monkeypatch, f"file://{tmp_path}/store", {})

    def no_locks(handle: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    first, second = host(tmp_path / "a", url), Key("engine", {"model": "second"})
    Cache(tmp_path / "a").get_or_make(KEY, make)
    first.outbox.add(KEY, None)
    assert [sent.outcome for sent in first.push_waiting()] == ["pushed"]
    made_and_pushed(first, second)
    for key in (KEY, second):
        assert host(tmp_path / "b", url).get_or_make(key, never).origin == "pulled"


def wait_for_failure(cache: Cache) -> None:
    deadline = time.monotonic() + 60
    while "entries left" not in (cache.root / "push.log").read_text() or list(pushers(cache.root)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def forget_failures(root: Path) -> None:
    """Put the end of every pause into the past."""
    (note,) = (root / "remote").iterdir()
    state = json.loads(note.read_text())
    note.write_text(json.dumps({name: {**value, "until": time.time() - 1} for name, value in state.items()}))


@pytest.mark.parametrize("there", [".", "below", ".."])
def test_a_folder_is_not_both_tiers(tmp_path, there):
    with pytest.raises(CacheError, match="shares a folder with the local cache"):
        Remote(str(tmp_path / "cache" / there), tmp_path / "cache")
