"""`triton-unified cache export` and `import`: what goes in comes out, and nothing hostile gets past its folder."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from commands import COMMAND, add_entry, command, printed, tree
from unified_backend.cache import Cache, Key
from unified_backend.cache.archive import unpack
from unified_backend.cache.manifest import MANIFEST, SIGNATURE, Manifest, record_files
from unified_backend.cache.signing import read_signer
from unified_backend.errors import Refused

Members = list[tuple[tarfile.TarInfo, bytes]]
SECRET = b"0123456789abcdef"
INDEX = "triton-unified-cache.json"


@pytest.fixture
def digests(tmp_path) -> tuple[str, str]:
    """Two entries in the cache of the host `from`, of a/1 and b/2; with a signature if there is a key."""
    with Cache(tmp_path / "from" / "cache") as cache:
        first = add_entry(cache, "engine", {"n": 1}, {"model.bin": b"weights" * 999, "in/side": b""}, "a/1")
        return first, add_entry(cache, "canonical", {"n": 2}, {"note": b"2"}, "b/2")


@pytest.fixture
def members(tmp_path, digests) -> Members:
    """What is in an archive of both: the canonical entry's manifest and note, then the engine's, then the index."""
    assert command(tmp_path / "from", "cache", "export", tmp_path / "all.tar").returncode == 0
    with tarfile.open(tmp_path / "all.tar") as tar:
        found = [(member, (tar.extractfile(member) or io.BytesIO()).read()) for member in tar]
    assert [member.name.rpartition("/")[2] for member, _ in found] == [
        *(MANIFEST, "note"),
        *(MANIFEST, "side", "model.bin"),
        INDEX,
    ]
    return found


def written(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


def here(home: Path) -> set[str]:
    return {path.name for path in (home / "cache" / "entries").glob("*/*/*")}


def outcomes(home: Path, archive: Path, code: int, env: dict[str, str] | None = None) -> dict[str, str]:
    """Key -> what the import says became of it; of what is no entry, under an empty key."""
    rows = printed(home, "cache", "import", archive, code=code, env=env)["entries"]
    return {row["key"]: row["outcome"] for row in rows}


@pytest.mark.parametrize("name", ["all.tar", "all.tar.zst"])
def test_what_is_exported_is_imported_elsewhere_byte_for_byte(tmp_path, digests, name):
    done = command(tmp_path / "from", "cache", "export", tmp_path / name)
    assert done.stdout.endswith("entries: exported=2\n")
    assert outcomes(tmp_path / "to", tmp_path / name, 0) == dict.fromkeys(digests, "imported")
    assert tree(tmp_path / "to" / "cache" / "entries") == tree(tmp_path / "from" / "cache" / "entries")
    assert outcomes(tmp_path / "to", tmp_path / name, 0) == dict.fromkeys(digests, "there")


def test_the_same_entries_give_the_same_archive(tmp_path, digests):
    for name in ("one.tar", "two.tar"):
        command(tmp_path / "from", "cache", "export", tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_models_are_chosen_by_name_and_version(tmp_path, digests):
    for models, chosen in ((["b/2"], {digests[1]}), (["a", "b/2"], set(digests))):
        command(tmp_path / "from", "cache", "export", tmp_path / "some.tar", *models)
        assert outcomes(tmp_path / "-".join(models).replace("/", "."), tmp_path / "some.tar", 0).keys() == chosen


@pytest.mark.parametrize(
    ("arguments", "code"), [(["x.tar", "c"], 2), (["x.tgz"], 2), (["nowhere/x.tar"], 1), (["x.tar", "b/1"], 2)]
)
def test_an_export_that_cannot_be_leaves_nothing(tmp_path, digests, arguments, code):
    done = command(tmp_path / "from", "cache", "export", tmp_path / arguments[0], *arguments[1:])
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


def test_a_damaged_entry_is_not_exported_and_the_others_are(tmp_path, digests):
    file = next((tmp_path / "from" / "cache").rglob("model.bin"))
    file.write_bytes(b"x" * file.stat().st_size)
    done = command(tmp_path / "from", "cache", "export", tmp_path / "all.tar")
    assert done.returncode == 1
    assert "wrong SHA-256" in done.stdout
    assert outcomes(tmp_path / "to", tmp_path / "all.tar", 0) == {digests[1]: "imported"}


@pytest.mark.parametrize("content", [b"", b"\0" * 10240, b"not an archive" * 100, b"\x28\xb5\x2f\xfdnot zstd"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    for file in ("x.tar", "nowhere.tar", "."):
        done = command(tmp_path, "cache", "import", tmp_path / file)
        assert done.returncode == (1 if content[:1] == b"\0" and file == "x.tar" else 2), done.stdout
        assert "Traceback" not in done.stderr


def test_an_archive_that_was_cut_off_says_so(tmp_path, digests, members):
    (tmp_path / "cut.tar").write_bytes((tmp_path / "all.tar").read_bytes()[:4096])
    assert outcomes(tmp_path / "to", tmp_path / "cut.tar", 1) == {digests[1]: "imported", "": "refused"}
    done = command(tmp_path / "to", "cache", "import", written(tmp_path / "cut.tar", members[:-1]))
    assert done.returncode == 1
    assert "cut off" in done.stdout


def change(number: int, **fields: object) -> Callable[[Members], None]:
    """Change fields of a member's header."""

    def apply(members: Members) -> None:
        for name, value in fields.items():
            setattr(members[number][0], name, value)

    return apply


def rename(old: str, new: str) -> Callable[[Members], None]:
    def apply(members: Members) -> None:
        for member, _ in members:
            member.name = member.name.replace(old, new)

    return apply


def insert(number: int, name: str, **fields: object) -> Callable[[Members], None]:
    """Add a member; in its name, ENTRY stands for the folder of the canonical entry."""

    def apply(members: Members) -> None:
        member = tarfile.TarInfo(name.replace("ENTRY", members[0][0].name.rpartition("/")[0]))
        for field, value in fields.items():
            setattr(member, field, value)
        members.insert(number, (member, b"x" * member.size))

    return apply


def forged(key: Key, files: dict[str, bytes], folder: Path) -> Members:
    """An entry that its manifest describes rightly, whatever its names."""
    folder.mkdir()
    for number, data in enumerate(files.values()):
        (folder / str(number)).write_bytes(data)
    records = record_files(folder)
    named = {name: records[str(number)] for number, name in enumerate(files)}
    manifest = Manifest(key, {}, named, {}).to_bytes()
    prefix = f"entries/{key.kind}/{key.digest}"
    found = []
    for name, data in ((MANIFEST, manifest), *files.items()):
        member = tarfile.TarInfo(f"{prefix}/{name}")
        member.size = len(data)
        found.append((member, data))
    return found


LINKS = {
    "a symbolic link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0},
    "a hard link": {"type": tarfile.LNKTYPE, "linkname": "../../../../outside", "size": 0},
    "a device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "size": 0},
    "a pipe": {"type": tarfile.FIFOTYPE, "size": 0},
    "a folder": {"type": tarfile.DIRTYPE, "size": 0},
    "a sparse file": {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}},
}
# All on the canonical entry, which comes first; the engine's must arrive all the same.
HOSTILE: dict[str, Callable[[Members], None]] = {
    "another manifest": lambda members: members.__setitem__(0, (members[0][0], members[2][1])),
    "other bytes": lambda members: members.__setitem__(1, (members[1][0], b"3")),
    "no manifest": lambda members: members.__delitem__(0),
    "a missing file": lambda members: members.__delitem__(1),
    "an extra file": insert(2, "ENTRY/extra", size=3),
    "an extra file before": insert(1, "ENTRY/extra", size=3),
    "a file twice": insert(2, "ENTRY/note", size=1),
    "a way out": insert(2, "ENTRY/../../../../../outside", size=3),
    "another kind": rename("/canonical/", "/engine/"),
    "a large signature": insert(1, f"ENTRY/{SIGNATURE}", size=100_000),
    **{f"{name} for a file": change(1, **fields) for name, fields in LINKS.items()},
    **{f"{name} for a manifest": change(0, **fields) for name, fields in LINKS.items()},
}
# No entry at all, before the good ones.
STRANGE = {
    "an absolute name": insert(0, "/tmp/outside", size=3),
    "a way out": insert(0, "../outside", size=3),
    "a way out of the folder": insert(0, "entries/engine/../../../outside/manifest.json", size=3),
    "a link": insert(0, "entries", type=tarfile.SYMTYPE, linkname="/tmp"),
    "a kind that cannot be": insert(0, f"entries/a b/{'0' * 64}/manifest.json", size=3),
    "no key": insert(0, "entries/engine/0123/manifest.json", size=3),
    "a name with codes": insert(0, "\x1b[31m", size=3),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_hostile_entry_is_refused_and_the_next_one_imported(tmp_path, digests, members, change):
    HOSTILE[change](members)
    home, before = tmp_path / "to", {path for path in tmp_path.rglob("*") if path.name not in ("x.tar", "to")}
    with Cache(home / "cache") as cache:
        sent = {row.digest: row for row in unpack(cache, written(tmp_path / "x.tar", members))}
    assert {digest: row.outcome for digest, row in sent.items()} == {digests[0]: "imported", digests[1]: "refused"}
    assert sent[digests[1]].reason
    assert here(home) == {digests[0]}
    assert not list((home / "cache" / "making").iterdir())
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(home)} - {tmp_path / "x.tar"} == before


@pytest.mark.parametrize("change", STRANGE)
def test_what_belongs_to_no_entry_is_named_and_left(tmp_path, digests, members, change):
    STRANGE[change](members)
    outside = set(Path("/tmp").glob("outside*"))
    with Cache(tmp_path / "to" / "cache") as cache:
        sent = {row.digest: row for row in unpack(cache, written(tmp_path / "x.tar", members))}
    assert sent[""].outcome == "refused"
    assert "belongs to no entry" in sent[""].reason
    assert here(tmp_path / "to") == set(digests)
    assert set(Path("/tmp").glob("outside*")) == outside
    assert not list(tmp_path.rglob("outside*"))


def test_names_in_an_archive_reach_no_terminal_as_codes(tmp_path, members):
    STRANGE["a name with codes"](members)
    done = command(tmp_path / "to", "cache", "import", written(tmp_path / "x.tar", members))
    assert done.returncode == 1
    assert "[31m" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("../../../outside", {"x": b"1"}),
        ("engine", {"/tmp/outside": b"1"}),
        ("engine", {"../outside": b"1"}),
        ("engine", {"a": b"1", "a/b": b"1"}),
        ("engine", {f"{MANIFEST}/x": b"1"}),
        ("engine", {f"{SIGNATURE}/x": b"1"}),
        ("engine", {"x" * 300: b"1"}),
        ("engine", {"a\0b": b"1"}),
    ],
)
def test_a_manifest_that_lies_with_care_is_refused_too(tmp_path, members, kind, files):
    archive = written(tmp_path / "x.tar", forged(Key(kind, {}), files, tmp_path / "parts") + members)
    with Cache(tmp_path / "to" / "cache") as cache:
        sent = [row.outcome for row in unpack(cache, archive)]
    assert sent[0] == "refused"
    assert sent[-2:] == ["imported"] * 2
    assert len(here(tmp_path / "to")) == 2
    assert not [path for path in tmp_path.rglob("outside*") if path.name != "parts"]


def bomb(tmp_path: Path, member: tarfile.TarInfo, size: int) -> Path:
    """An archive of one member that states `size` zeros and has them, in a few kilobytes."""
    member.size = size
    chunk = b"\0" * (1 << 20)
    with (
        (tmp_path / "bomb.tar.zst").open("wb") as file,
        zstandard.ZstdCompressor(1).stream_writer(file) as stream,
    ):
        stream.write(member.tobuf())
        for _ in range(size >> 20):
            stream.write(chunk)
    return tmp_path / "bomb.tar.zst"


@pytest.mark.parametrize(
    "member",
    [
        {"type": tarfile.XHDTYPE, "name": "pax"},
        {"type": tarfile.GNUTYPE_LONGNAME, "name": "long"},
        {"name": f"entries/engine/{'0' * 64}/{MANIFEST}"},
        {"name": "anything"},
    ],
)
def test_a_bomb_fills_neither_memory_nor_disk(tmp_path, member):
    header = tarfile.TarInfo(member["name"])
    header.type = member.get("type", tarfile.REGTYPE)
    archive = bomb(tmp_path, header, 1 << 30)
    environment = {**os.environ, "TRITON_UNIFIED_CACHE": str(tmp_path / "cache")}
    environment["TRITON_UNIFIED_CACHE_MAX_SIZE"] = "100MB"
    process = subprocess.Popen([COMMAND, "cache", "import", archive], env=environment, stdout=subprocess.PIPE)
    assert process.stdout
    shown = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (1, 2)
    assert "imported" not in shown
    assert usage.ru_maxrss < 600_000  # kilobytes; half of them are imports
    assert here(tmp_path) == set()


def test_an_entry_larger_than_its_manifest_says_is_refused_unread(tmp_path, digests, members):
    members[1] = (members[1][0], b"2" * 50_000)
    members[1][0].size = 50_000
    found = printed(tmp_path / "to", "cache", "import", written(tmp_path / "x.tar", members), code=1)
    assert "has 50000 bytes, and its manifest says 1" in found["entries"][0]["reason"]


def test_an_entry_larger_than_the_cache_may_be_is_refused(tmp_path, digests, members):
    limit = {"TRITON_UNIFIED_CACHE_MAX_SIZE": "5kB"}
    assert outcomes(tmp_path / "to", tmp_path / "all.tar", 1, limit) == {digests[0]: "refused", digests[1]: "imported"}


def test_what_follows_the_end_is_not_taken(tmp_path, digests, members):
    members.append(members.pop(0))
    done = command(tmp_path / "to", "cache", "import", written(tmp_path / "x.tar", members))
    assert done.returncode == 1
    assert "follows its end" in done.stdout


@pytest.fixture
def signed(tmp_path) -> Iterator[dict[str, str]]:
    (tmp_path / "key").write_bytes(SECRET)
    with Cache(tmp_path / "from" / "cache", signer=read_signer(tmp_path / "key")) as cache:
        add_entry(cache, "engine", {"n": 1}, {"model.bin": b"weights"})
    yield {"TRITON_UNIFIED_CACHE_KEY_FILE": str(tmp_path / "key")}


def test_signatures_travel_along_and_are_wanted_where_a_key_is_set(tmp_path, signed):
    archive = tmp_path / "signed.tar"
    assert command(tmp_path / "from", "cache", "export", archive, env=signed).returncode == 0
    assert set(outcomes(tmp_path / "to", archive, 0, signed).values()) == {"imported"}
    assert command(tmp_path / "to", "cache", "verify", env=signed).returncode == 0
    (tmp_path / "other").write_bytes(SECRET[::-1])
    stranger = {"TRITON_UNIFIED_CACHE_KEY_FILE": str(tmp_path / "other")}
    done = command(tmp_path / "new", "cache", "import", archive, env=stranger)
    assert done.returncode == 1
    assert "signed with the key" in done.stdout
    assert here(tmp_path / "new") == set()


def test_an_unsigned_entry_is_refused_where_a_key_is_set(tmp_path, members):
    (tmp_path / "key").write_bytes(SECRET)
    key = {"TRITON_UNIFIED_CACHE_KEY_FILE": str(tmp_path / "key")}
    done = command(tmp_path / "to", "cache", "import", tmp_path / "all.tar", env=key)
    assert done.returncode == 1
    assert done.stdout.count("not signed") == 2


def test_a_damaged_archive_is_an_answer_whatever_is_damaged(tmp_path, digests, members):
    """Bytes changed at random: no exception of another kind, and nothing published that is not what was packed."""
    data = (tmp_path / "all.tar").read_bytes()
    good = tree(tmp_path / "from" / "cache" / "entries")
    chance = random.Random(7)
    seen = set()
    for number in range(150):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 1, 3, 30])):
            # Most bytes are padding: headers and the text behind them are where it matters.
            damaged[chance.randrange(0, len(data)) if number % 2 else chance.randrange(0, 2048)] = chance.randrange(256)
        (tmp_path / "x.tar").write_bytes(damaged)
        with Cache(tmp_path / f"to{number}") as cache:
            try:
                seen |= {row.outcome for row in unpack(cache, tmp_path / "x.tar")}
            except Refused:
                seen.add("no archive")
        there = tree(tmp_path / f"to{number}" / "entries")
        assert there == {name: content for name, content in good.items() if name in there}
    assert seen >= {"imported", "refused", "no archive"}


def test_the_index_lists_what_is_in_it(tmp_path, digests, members):
    assert json.loads(members[-1][1]) == {"entries": [f"canonical/{digests[1]}", f"engine/{digests[0]}"]}
