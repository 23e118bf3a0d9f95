"""A fleet builds once: who waits, who takes over, and that nobody touches a lease that is another's."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from filelock import FileLock
from object_stores import ObjectStore
from unified_backend.cache import Cache, Entry, Key, outbox
from unified_backend.cache.remote import Remote, lease, objects
from unified_backend.cache.remote.lease import Claim, Lease, Watch, acquire
from unified_backend.cache.remote.objects import Objects

KEY = Key("engine", {"model": "abc"})
FOR_EVER = 10_000.0  # seconds: whoever waits out a lease of this time fails its test


@pytest.fixture(params=["s3", "folder"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store that this process and its children reach."""
    if request.param == "s3":
        s3: ObjectStore = request.getfixturevalue("s3")
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        url = s3.url()
        # What is tested is who builds; a store that is slow on a busy machine is another test's, in test_remote.py.
        monkeypatch.setattr(objects, "_SMALL", {**objects._SMALL, "timeout": timedelta(seconds=60)})
    else:
        url = str(tmp_path / "store")
    monkeypatch.setenv("TRITON_UNIFIED_REMOTE_CACHE", url)
    return url


def host(root: Path, url: str) -> Cache:
    return Cache(root, remote=Remote(url, root))


def make(folder: Path) -> dict[str, object]:
    (folder / "model.bin").write_bytes(b"weights")
    return {}


def never(folder: Path) -> dict[str, object]:
    raise AssertionError("made again")


class Asking:
    """A host that asks for the entry, in a thread.

    Attributes:
        making: set once it builds.
        finish: set this to let it end its build.
    """

    def __init__(self, cache: Cache, work: Callable[[Path], dict[str, object]] = make) -> None:
        self.cache = cache
        self.making, self.finish = threading.Event(), threading.Event()
        self._work = work
        self._found: list[Entry | Exception] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def entry(self) -> Entry:
        """What it got."""
        self._thread.join(90)
        assert not self._thread.is_alive(), "still waiting"
        (found,) = self._found
        if isinstance(found, Exception):
            raise found
        return found

    def _ask(self) -> None:
        def build(folder: Path) -> dict[str, object]:
            self.making.set()
            assert self.finish.wait(90)
            return self._work(folder)

        try:
            self._found.append(self.cache.get_or_make(KEY, build))
        except Exception as error:  # noqa: BLE001 - for the thread that asks
            self._found.append(error)


def seen_waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released at each look of a host at a lease that another holds."""
    looks = threading.Semaphore(0)
    look = Watch.look

    def counted(watch: Watch) -> str | None:
        found = look(watch)
        if found is None:
            looks.release()
        return found

    monkeypatch.setattr(Watch, "look", counted)
    return looks


def test_of_hosts_that_ask_at_once_one_builds_and_the_rest_pull(url, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", FOR_EVER)
    looks = seen_waiting(monkeypatch)
    hosts = [Asking(host(tmp_path / str(number), url)) for number in range(3)]
    assert looks.acquire(timeout=60)
    for one in hosts:
        one.finish.set()
    assert sorted(one.entry().origin for one in hosts) == ["made", "pulled", "pulled"]
    wait_until_nothing_is_leased(url)


def wait_until_nothing_is_leased(url: str) -> None:
    """The pusher gives a lease back after what it pushed can be pulled."""
    deadline = time.monotonic() + 60
    while Objects(url).names("leases"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_entry_pushed_between_the_look_for_it_and_for_its_lease_is_not_built_again(url, tmp_path, monkeypatch):
    look = Watch.look

    def after_another_host_is_done(watch: Watch) -> str | None:
        monkeypatch.setattr(Watch, "look", look)
        other = host(tmp_path / "other", url)
        other.get_or_make(KEY, make)
        wait_until_nothing_is_leased(url)
        return look(watch)

    monkeypatch.setattr(Watch, "look", after_another_host_is_done)
    assert host(tmp_path / "late", url).get_or_make(KEY, never).origin == "pulled"
    assert Objects(url).names("leases") == []


def build_for_ever(root: str, url: str, started: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    def for_ever(folder: Path) -> dict[str, object]:
        started.set()
        time.sleep(600)
        return {}

    host(Path(root), url).get_or_make(KEY, for_ever)


def test_a_builder_that_was_killed_is_replaced_when_its_lease_runs_out(url, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 3.0)
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    builder = context.Process(target=build_for_ever, args=(str(tmp_path / "a"), url, started))
    builder.start()
    assert started.wait(60)
    builder.kill()
    builder.join()
    began = time.monotonic()
    assert host(tmp_path / "b", url).get_or_make(KEY, make).origin == "made"
    assert 3 <= time.monotonic() - began < 30
    assert f"pid {builder.pid}" in caplog.text
    # The dead one's lease goes with the living one's: the next host need not wait it out.
    wait_until_nothing_is_leased(url)


def test_a_builder_that_fails_gives_the_lease_back_at_once(url, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", FOR_EVER)
    looks = seen_waiting(monkeypatch)

    def fails(folder: Path) -> dict[str, object]:
        raise ValueError("no engine")

    first = Asking(host(tmp_path / "a", url), fails)
    assert first.making.wait(60)
    second = Asking(host(tmp_path / "b", url))
    assert looks.acquire(timeout=60)
    first.finish.set()
    with pytest.raises(ValueError, match="no engine"):
        first.entry()
    assert second.making.wait(60)
    second.finish.set()
    assert second.entry().origin == "made"


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_build_longer_than_a_lease_keeps_it(url, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    looks = seen_waiting(monkeypatch)
    first = Asking(host(tmp_path / "a", url))
    assert first.making.wait(60)
    second = Asking(host(tmp_path / "b", url))
    for _ in range(7):  # looks, a second apart
        assert looks.acquire(timeout=60)
    assert not second.making.is_set()
    first.finish.set()
    assert second.entry().origin == "pulled"


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_the_pusher_keeps_the_lease_until_the_entry_can_be_pulled(url, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(outbox, "RENEW_SECONDS", 0.2)
    looks = seen_waiting(monkeypatch)
    first = host(tmp_path / "a", url)
    uploading, go_on = threading.Event(), threading.Event()
    upload = Objects.upload

    def slowly(objects: Objects, path: str, file: Path) -> None:
        uploading.set()
        assert go_on.wait(90)
        upload(objects, path, file)

    monkeypatch.setattr(Objects, "upload", slowly)
    (tmp_path / "a" / "locks").mkdir(parents=True)
    with FileLock(tmp_path / "a" / "locks" / "outbox.lock"):  # so that no process of its own pushes
        assert first.get_or_make(KEY, make).origin == "made"
    pusher = threading.Thread(target=lambda: list(first.push_waiting(patient=True)))
    pusher.start()
    assert uploading.wait(60)
    second = Asking(host(tmp_path / "b", url))
    for _ in range(7):
        assert looks.acquire(timeout=60)
    assert not second.making.is_set()
    go_on.set()
    assert second.entry().origin == "pulled"
    pusher.join()
    assert Objects(url).names("leases") == []


def held(lease: Lease | None) -> Claim:
    assert lease
    return lease.hand_over()


def test_a_lease_that_ran_out_is_not_renewed_or_given_back_in_its_next_holders_place(url):
    objects = Objects(url)
    path = "leases/digest/000001"
    late = held(acquire(objects, path))
    assert acquire(objects, path) is None
    late.release(objects)
    current = held(acquire(objects, path))
    before = objects.get(path)
    assert not late.renew(objects)
    late.release(objects)
    assert objects.get(path) == before
    assert current.renew(objects)
    assert objects.get(path) != before


def test_who_took_over_from_the_dead_gives_both_leases_back(url):
    objects = Objects(url)
    dead, living, other = (f"leases/{name}" for name in ("digest/000001", "digest/000002", "other/000001"))
    for path in (dead, other):
        held(acquire(objects, path))
    held(acquire(objects, living)).release(objects)
    assert objects.names("leases") == [other]


def test_a_failed_push_gives_the_lease_back_and_never_touches_it_again(url, tmp_path, monkeypatch):
    first = host(tmp_path / "a", url)
    (tmp_path / "a" / "locks").mkdir(parents=True)
    with FileLock(tmp_path / "a" / "locks" / "outbox.lock"):
        first.get_or_make(KEY, make)
    assert first.remote
    (note,) = first.outbox.waiting()
    objects = first.remote.objects

    def refuses(*_: object) -> None:
        raise outbox.RemoteError("403 Forbidden", forbidden=True)

    with monkeypatch.context() as broken:
        broken.setattr(Objects, "upload", refuses)
        assert [sent.outcome for sent in first.push_waiting()] == ["failed"]
    assert objects.names("leases") == []
    assert first.outbox.waiting() == [note]
    other = held(acquire(objects, f"leases/{KEY.digest}/000001"))
    assert [sent.outcome for sent in first.push_waiting()] == ["pushed"]
    assert other.renew(objects)


def test_a_lease_is_not_there_again_when_it_is_given_back_while_it_is_renewed(url, tmp_path, monkeypatch):
    """The pusher renews at once, in a thread: a small entry is pushed before a slow store has taken the renewal."""
    monkeypatch.setattr(outbox.Outbox, "send_in_background", lambda self: None)
    cache = host(tmp_path / "a", url)
    cache.get_or_make(KEY, make)
    put = Objects.put

    def put_late(self: Objects, path: str, content: bytes) -> None:
        if path.startswith("leases/"):
            time.sleep(0.5)
        put(self, path, content)

    monkeypatch.setattr(Objects, "put", put_late)
    assert [sent.outcome for sent in cache.push_waiting(patient=True)] == ["pushed"]
    assert Objects(url).names("leases") == []
