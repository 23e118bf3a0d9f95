"""`triton-unified cache`: what a person reads, what a program parses, what is refused, on the real command."""

from __future__ import annotations

import itertools
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import COMMAND, RELU, add_entry, command, printed, read_only, tree, unified_model
from typer.testing import CliRunner
from unified_backend.cache import Cache, Key
from unified_backend.cache.manifest import MANIFEST
from unified_backend.cli import app

ENGINE = {"engine": "onnxruntime", "cpu": "x86_64,avx"}
SECRET = b"0123456789abcdef"
NOBODY = {
    "TRITON_UNIFIED_REMOTE_CACHE": "s3://bucket/prefix",
    "AWS_ENDPOINT": "http://127.0.0.1:9",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
}


@pytest.fixture
def cache(tmp_path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def two(cache) -> tuple[str, str]:
    """The engines of a/1 and b/1."""
    found = add_entry(cache, "engine", ENGINE, {"model.bin": b"a" * 2000}, "a/1")
    other = add_entry(cache, "engine", {**ENGINE, "n": 2}, {"model.bin": b"b" * 1000, "in/side": b"c"}, "b/1")
    cache.close()
    return found, other


def place(home: Path, digest: str) -> Path:
    return next((home / "cache" / "entries").glob(f"*/*/{digest}"))


def here(home: Path) -> set[str]:
    return {path.name for path in (home / "cache" / "entries").glob("*/*/*")}


def key_file(home: Path, secret: bytes = SECRET) -> dict[str, str]:
    (home / "key").write_bytes(secret)
    return {"TRITON_UNIFIED_CACHE_KEY_FILE": str(home / "key")}


def folder_remote(home: Path) -> dict[str, str]:
    return {"TRITON_UNIFIED_REMOTE_CACHE": str(home / "remote")}


@pytest.mark.parametrize(
    "name", ["info", "ls", "show", "explain", "verify", "gc", "rm", "push", "pull", "export", "import"]
)
def test_every_command_has_help_with_an_example(name):
    shown = CliRunner().invoke(app, ["cache", name, "--help"]).output
    assert "Example" in shown
    assert f"triton-unified cache {name}" in shown
    assert "--json" in shown


def test_a_cache_that_is_not_there_is_empty_and_stays_so(tmp_path):
    info = command(tmp_path, "cache", "info")
    assert info.returncode == 0
    assert "not there yet" in info.stdout
    assert "the cache is empty" in info.stdout
    listed = command(tmp_path, "cache", "ls")
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "", f"empty: {tmp_path / 'cache'}\n")
    assert printed(tmp_path, "cache", "verify") == {"verified": 0, "damaged": []}
    assert not (tmp_path / "cache").exists()


def test_info_counts_entries_lookups_and_what_waits(tmp_path, cache):
    for _ in range(4):
        add_entry(Cache(cache.root), "engine", ENGINE, {"model.bin": b"x" * 1000})
    add_entry(cache, "canonical", {})
    cache.outbox.add(Key("engine", ENGINE), None)
    found = printed(tmp_path, "cache", "info", env=key_file(tmp_path))
    assert found["entries"] == {"engine": {"count": 1, "bytes": 1000}, "canonical": {"count": 1, "bytes": 0}}
    assert found["lookups"]["by_kind"]["engine"] == {"hit": 3, "pulled": 0, "made": 1}
    assert found["lookups"]["hit_rate"] == 0.6
    assert found["waiting_to_be_pushed"] == 1
    assert found["signer"]["key"].startswith("hmac-sha256:")
    assert "60.0% hits (3 hit, 0 pulled, 2 made)" in command(tmp_path, "cache", "info").stdout


def test_info_says_whether_the_remote_cache_answers(tmp_path):
    assert (
        f"remote: {tmp_path / 'remote'} answers"
        in command(tmp_path, "cache", "info", env=folder_remote(tmp_path)).stdout
    )
    remote = printed(tmp_path, "cache", "info", env=NOBODY)["remote"]
    assert not remote["answers"]
    assert "no answer" in remote["reason"]


def test_ls_tells_whose_an_entry_is_and_for_which_device(tmp_path, cache, two):
    cache.store.usage.remember("renamed/3", [two[0]])
    canonical = add_entry(cache, "canonical", {}, model="b/1")
    rows = {row["key"]: row for row in printed(tmp_path, "cache", "ls")}
    assert rows[two[0]]["models"] == ["renamed/3"]
    assert rows[two[1]]["models"] == ["b/1"]
    assert (rows[two[0]]["device"], rows[canonical]["device"]) == ("cpu:x86_64,avx", "any")
    assert rows[two[1]]["bytes"] == 1001
    lines = command(tmp_path, "cache", "ls").stdout.splitlines()
    cells = {line.split("\t")[-1]: line.split("\t") for line in lines}
    assert cells[two[0][:12]][:5] == ["renamed/3", "engine", "onnxruntime", "cpu:x86_64,avx", "2 kB"]


def test_ls_on_a_terminal_is_a_table(tmp_path, two):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TRITON_UNIFIED_CACHE": str(tmp_path / "cache"), "COLUMNS": "120", "TERM": "xterm"}
    subprocess.run([COMMAND, "cache", "ls"], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert shown.index("models") < shown.index("device") < shown.index("b/1")


def test_names_from_elsewhere_reach_no_terminal_as_codes(tmp_path, cache):
    digest = add_entry(cache, "engine", ENGINE, model="\x1b[31mred\n/1")
    for arguments in (["ls"], ["show", digest], ["rm", digest]):
        shown = command(tmp_path, "cache", *arguments).stdout
        assert "red" in shown
        assert "\x1b" not in shown


def test_show_prints_what_the_key_was_made_from(tmp_path, two):
    shown = command(tmp_path, "cache", "show", two[1][:8].upper())
    assert shown.returncode == 0
    for line in (f"key: {two[1]}", "models: b/1", "state: intact", "depends on cpu: x86_64,avx", "depends on n: 2"):
        assert f"{line}\n" in shown.stdout
    assert "file in/side: 1 B, SHA-256 " in shown.stdout
    assert printed(tmp_path, "cache", "show", two[1])["manifest"]["key"] == {**ENGINE, "n": 2}


@pytest.mark.parametrize(
    ("verb", "prefix"), [("show", "abc"), ("rm", "xyzw"), ("rm", "0" * 12), ("push", "0" * 12), ("pull", "0" * 65)]
)
def test_what_is_no_key_is_refused(tmp_path, two, verb, prefix):
    done = command(tmp_path, "cache", verb, prefix, env=folder_remote(tmp_path))
    assert done.returncode == 2
    assert prefix in done.stderr
    assert len(here(tmp_path)) == 2


def test_a_prefix_of_two_keys_is_refused_with_both(tmp_path, cache):
    seen: dict[str, int] = {}
    for number in itertools.count():
        prefix = Key("engine", {"n": number}).digest[:4]
        if prefix in seen:
            break
        seen[prefix] = number
    both = [add_entry(cache, "engine", {"n": n}) for n in (seen[prefix], number)]
    done = command(tmp_path, "cache", "show", prefix)
    assert done.returncode == 2
    assert all(digest[:12] in done.stderr for digest in both)


@pytest.fixture
def model(tmp_path) -> Path:
    return unified_model(tmp_path / "models", "relu.unified")


def explained(home: Path, model: Path, **options) -> dict[str, dict]:
    found = printed(home, "cache", "explain", model, **options)
    return {entry["name"]: entry for entry in found["entries"]}


def test_explain_builds_nothing_and_says_what_cannot_be_known(tmp_path, model):
    entries = explained(tmp_path, model)
    assert [entry["state"] for entry in entries.values()] == ["missing", "unknown", "missing"]
    assert "inputs" in entries["batching"]["reason"]
    assert here(tmp_path) == set()
    assert command(tmp_path, "check", model).returncode == 0
    assert {entry["state"] for entry in explained(tmp_path, model).values()} == {"cached"}


def test_explain_names_the_file_that_changed(tmp_path, model):
    command(tmp_path, "check", model)
    made = here(tmp_path)
    (model / "1" / "net").unlink()
    unified_model(model.parent.parent / "other", "relu.unified", RELU.replace("Relu(x)", "Neg(x)"))
    (model.parent.parent / "other" / "relu.unified" / "1" / "net").rename(model / "1" / "net")
    shown = command(tmp_path, "cache", "explain", model)
    assert shown.returncode == 0
    assert "differs: file 1 of 1, net, " in shown.stdout
    assert "differs: canonical: " in shown.stdout
    assert here(tmp_path) == made


def test_explain_names_the_option_that_changed_with_both_values(tmp_path, model):
    command(tmp_path, "check", model)
    (model / "config.pbtxt").write_text(
        'backend: "unified" parameters { key: "graph_optimization" value { string_value: "basic" } }'
    )
    entries = explained(tmp_path, model)
    assert entries["canonical"]["state"] == "cached"
    assert entries["engine onnxruntime"]["differences"] == [
        {"field": "graph_optimization", "old": "all", "new": "basic"}
    ]
    assert "differs: graph_optimization: all -> basic\n" in command(tmp_path, "cache", "explain", model).stdout


def test_explain_prefers_what_the_model_itself_used(tmp_path, model):
    command(tmp_path, "check", model)
    used = explained(tmp_path, model)["canonical"]
    with Cache(tmp_path / "cache") as cache:
        add_entry(cache, "canonical", {**used["fields"], "onnx": "0.1"}, model="other/1")
    (model / "1" / "net").write_bytes((model / "1" / "net").read_bytes() + b"\x3a\x00")  # still ONNX: an empty field
    assert explained(tmp_path, model)["canonical"]["closest"]["key"] == used["key"]


def test_explain_tells_removed_from_changed(tmp_path, model):
    command(tmp_path, "check", model)
    command(tmp_path, "cache", "rm", explained(tmp_path, model)["engine onnxruntime"]["key"])
    found = explained(tmp_path, model)["engine onnxruntime"]
    assert found["state"] == "removed"
    assert "evicted or removed" in found["reason"]


def test_explain_tells_set_aside_from_removed(tmp_path, model):
    command(tmp_path, "check", model)
    entry = place(tmp_path, explained(tmp_path, model)["engine onnxruntime"]["key"])
    DAMAGES["unreadable manifest"](entry)
    command(tmp_path, "cache", "verify", "--repair")
    found = explained(tmp_path, model)["engine onnxruntime"]
    assert found["state"] == "removed"
    assert "set aside as damaged" in found["reason"]
    # Built, used and removed since: what lies in quarantine is an old story.
    command(tmp_path, "check", model)
    command(tmp_path, "cache", "rm", entry.name)
    assert "evicted or removed" in explained(tmp_path, model)["engine onnxruntime"]["reason"]


def test_explain_finds_in_the_remote_cache_what_a_new_host_lacks(tmp_path, model):
    remote = folder_remote(tmp_path)
    assert command(tmp_path, "check", model).returncode == 0
    assert command(tmp_path, "cache", "push", env=remote).returncode == 0
    new = tmp_path / "new"
    assert {entry["state"] for entry in explained(new, model, env=remote).values()} == {"remote"}
    (model / "config.pbtxt").write_text(
        'backend: "unified" parameters { key: "graph_optimization" value { string_value: "none" } }'
    )
    engine = explained(new, model, env=remote)["engine onnxruntime"]
    assert [difference["field"] for difference in engine["differences"]] == ["graph_optimization"]
    assert here(new) == set()


@pytest.mark.parametrize("arguments", [["nowhere"], ["relu.unified", "--version", "7"]])
def test_nothing_to_explain_is_refused(tmp_path, model, arguments):
    assert command(tmp_path, "cache", "explain", model.parent / arguments[0], *arguments[1:]).returncode == 2


DAMAGES = {
    "wrong SHA-256": lambda entry: (entry / "model.bin").write_bytes(b"x" * 2000),
    "wrong size": lambda entry: (entry / "model.bin").write_bytes(b"x"),
    "files differ": lambda entry: (entry / "model.bin").unlink(),
    "unreadable manifest": lambda entry: (entry / MANIFEST).write_bytes(b"{"),
    "manifest.json: No such file": lambda entry: (entry / MANIFEST).unlink(),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_verify_finds_damage_and_repair_sets_it_aside(tmp_path, two, reason):
    DAMAGES[reason](place(tmp_path, two[0]))
    found = printed(tmp_path, "cache", "verify", "--repair", code=1)
    assert [(row["key"], row["repair"]) for row in found["damaged"]] == [(two[0], "set aside")]
    assert reason in found["damaged"][0]["reason"]
    assert command(tmp_path, "cache", "verify").stdout == "verified: entries=1 damaged=0\n"


def test_verify_believes_no_memory(tmp_path, cache, two):
    file = place(tmp_path, two[0]) / "model.bin"
    digest = cache.store.memo.digest(file)
    file.write_bytes(b"x" * 2000)
    time.sleep(2.1)  # until the memo takes a file's times for settled
    cache.store.memo.recall(file, "sha256", lambda: digest)  # as if the disk had rotted under it
    cache.store.check(file.parent, cache.store.memo.digest)
    done = command(tmp_path, "cache", "verify")
    assert done.returncode == 1
    assert f"damaged: kind=engine key={two[0][:12]} model=a/1 reason='model.bin has the wrong SHA-256'" in done.stdout


def test_verify_repairs_from_the_remote_cache(tmp_path, two):
    remote = folder_remote(tmp_path)
    command(tmp_path, "cache", "push", env=remote)
    DAMAGES["wrong size"](place(tmp_path, two[0]))
    assert "repair='pulled again'" in command(tmp_path, "cache", "verify", "--repair", env=remote).stdout
    assert command(tmp_path, "cache", "verify").stdout == "verified: entries=2 damaged=0\n"


def test_verify_wants_the_signature_where_a_key_is_set(tmp_path, two):
    found = printed(tmp_path, "cache", "verify", env=key_file(tmp_path), code=1)
    assert [row["reason"] for row in found["damaged"]] == ["not signed"] * 2


def test_verify_leaves_to_others_what_is_only_not_signed(tmp_path, two):
    found = printed(tmp_path, "cache", "verify", "--repair", env=key_file(tmp_path), code=1)
    assert [row["repair"] for row in found["damaged"]] == ["left there, unused: hosts with another key may use it"] * 2
    assert here(tmp_path) == set(two)


HOLD = """
import sys
from pathlib import Path
from unified_backend.cache import Cache, Key
held = Cache(Path(sys.argv[1])).get_or_make(Key("engine", {"engine": "onnxruntime", "cpu": "x86_64,avx"}), None)
print(held.origin, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(cache, two) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the first of the two entries."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, cache.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "hit\n"
    yield process
    process.kill()
    process.communicate()


def test_gc_removes_what_nobody_uses_and_names_what_stays(tmp_path, two, holder):
    done = command(tmp_path, "cache", "gc", "--max-size", "0")
    assert done.returncode == 0, done.stderr
    assert f"stays, in use by a live process: kind=engine model=a/1 size=2 kB key={two[0][:12]}" in done.stdout
    assert here(tmp_path) == {two[0]}
    holder.kill()
    holder.wait()
    found = printed(tmp_path, "cache", "gc", "--max-size", "0")
    assert [row["key"] for row in found["removed"]] == [two[0]]
    assert here(tmp_path) == set()


def test_gc_keeps_what_fits(tmp_path, cache, two):
    os.utime(place(tmp_path, two[0]) / MANIFEST, (1, 1))
    assert "removed" not in command(tmp_path, "cache", "gc", "--max-size", "3.1kB").stdout
    command(tmp_path, "cache", "gc", "--max-size", "3kB")
    assert here(tmp_path) == {two[1]}
    refused = command(tmp_path, "cache", "gc", "--max-size", "5 elephants")
    assert refused.returncode == 2
    assert "20GB" in refused.stderr


def test_rm_refuses_what_a_live_process_holds(tmp_path, two, holder):
    done = command(tmp_path, "cache", "rm", two[0][:6])
    assert done.returncode == 1
    assert "in use by a live process" in done.stdout
    assert printed(tmp_path, "cache", "rm", "--all", code=1) == {"removed": [two[1]], "held": [two[0]], "shared": []}
    assert here(tmp_path) == {two[0]}


@pytest.mark.parametrize("name", ["a", "a/1"])
def test_rm_of_a_model_leaves_what_others_use(tmp_path, cache, two, name):
    shared = add_entry(cache, "canonical", {}, model="a/1")
    cache.close()
    cache.store.usage.remember("a/1", [two[0], shared])
    cache.store.usage.remember("b/1", [two[1], shared])
    done = command(tmp_path, "cache", "rm", "--model", name)
    assert done.returncode == 0
    assert "other models use it too" in done.stdout
    assert here(tmp_path) == {two[1], shared}


@pytest.mark.parametrize("arguments", [[], ["--all", "--model", "a"], ["--model", "a/2"]])
def test_rm_of_nothing_clear_is_refused(tmp_path, two, arguments):
    assert command(tmp_path, "cache", "rm", *arguments).returncode == 2
    assert len(here(tmp_path)) == 2


def test_rm_all_removes_damaged_entries_too(tmp_path, two):
    (place(tmp_path, two[0]) / MANIFEST).unlink()
    assert command(tmp_path, "cache", "rm", "--all").returncode == 0
    assert here(tmp_path) == set()


@pytest.fixture(params=["folder", "s3"])
def remote(request, tmp_path) -> dict[str, str]:
    if request.param == "folder":
        return folder_remote(tmp_path)
    store = request.getfixturevalue("s3")
    return {**store.environment, "TRITON_UNIFIED_REMOTE_CACHE": store.url()}


def test_what_one_host_pushes_another_pulls(tmp_path, cache, two, remote):
    cache.outbox.add(Key("engine", ENGINE), None)
    pushed = printed(tmp_path, "cache", "push", env=remote)["entries"]
    assert {row["key"]: row["outcome"] for row in pushed} == dict.fromkeys(two, "pushed")
    assert printed(tmp_path, "cache", "info")["waiting_to_be_pushed"] == 0
    assert {row["outcome"] for row in printed(tmp_path, "cache", "push", env=remote)["entries"]} == {"there"}

    other = tmp_path / "other"
    assert "pulled" in command(other, "cache", "pull", "--model", "b", env=remote).stdout
    assert here(other) == {two[1]}
    assert command(other, "cache", "pull", two[0][:10], env=remote).returncode == 0
    assert {row["outcome"] for row in printed(other, "cache", "pull", env=remote)["entries"]} == {"there"}
    assert command(other, "cache", "verify").stdout == "verified: entries=2 damaged=0\n"
    assert tree(place(other, two[1])) == tree(place(tmp_path, two[1]))


def test_push_sends_only_what_is_named_and_nothing_damaged(tmp_path, two):
    remote = folder_remote(tmp_path)
    assert "entries: pushed=1\n" in command(tmp_path, "cache", "push", two[1][:9], env=remote).stdout
    DAMAGES["wrong size"](place(tmp_path, two[0]))
    done = command(tmp_path, "cache", "push", env=remote)
    assert done.returncode == 1
    assert "wrong size" in done.stdout
    assert printed(tmp_path / "other", "cache", "pull", env=remote)["entries"][0]["key"] == two[1]


def test_pull_refuses_what_is_damaged_or_signed_by_nobody(tmp_path, two):
    remote = folder_remote(tmp_path)
    command(tmp_path, "cache", "push", env=remote)
    other = tmp_path / "other"
    refused = command(other, "cache", "pull", env={**remote, **key_file(tmp_path)})
    assert refused.returncode == 1
    assert "refused=2" in refused.stdout
    for blob in (tmp_path / "remote" / "blobs").iterdir():
        blob.write_bytes(b"x" * blob.stat().st_size)
    assert command(other, "cache", "pull", env=remote).returncode == 1
    assert here(other) == set()


def test_pull_says_so_when_the_cache_cannot_hold_it(tmp_path, two):
    remote = folder_remote(tmp_path)
    command(tmp_path, "cache", "push", env=remote)
    other = tmp_path / "other"
    done = command(other, "cache", "pull", env={**remote, "TRITON_UNIFIED_CACHE_MAX_SIZE": "2100"})
    assert "went again" in done.stderr
    assert len(here(other)) == 1


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_without_a_remote_cache_there_is_nothing_to_do_and_a_dead_one_is_a_failure(tmp_path, two, verb):
    refused = command(tmp_path, "cache", verb)
    assert refused.returncode == 2
    assert "TRITON_UNIFIED_REMOTE_CACHE" in refused.stderr
    failed = command(tmp_path, "cache", verb, env=NOBODY)
    assert failed.returncode == 1
    assert "no answer" in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRITON_UNIFIED_REMOTE_CACHE", "ftp://host/folder"),
        ("TRITON_UNIFIED_CACHE_MAX_SIZE", "big"),
        ("TRITON_UNIFIED_CACHE_KEY_FILE", "/nowhere/key"),
    ],
)
@pytest.mark.parametrize(
    "arguments", [["cache", "ls"], ["build", "{home}/models"], ["check", "{home}/models/relu.unified"]]
)
def test_a_variable_that_cannot_be_used_is_refused(tmp_path, model, arguments, variable, value):
    done = command(tmp_path, *(argument.format(home=tmp_path) for argument in arguments), env={variable: value})
    assert done.returncode == 2, done.stderr
    assert variable in done.stderr


def test_a_read_only_cache_is_read_and_what_would_write_fails_plainly(tmp_path, two):
    archive = tmp_path / "all.tar"
    remote = folder_remote(tmp_path)
    assert command(tmp_path, "cache", "export", archive).returncode == 0
    read_only(tmp_path / "cache")
    before = tree(tmp_path / "cache")
    for arguments in (["info"], ["ls"], ["show", two[0]], ["verify"], ["export", tmp_path / "b.tar"], ["push"]):
        done = command(tmp_path, "cache", *arguments, env=remote, bound=True)
        assert done.returncode == 0, done.stderr
    assert (
        not printed(tmp_path, "cache", "info")["exists"]
        or "read-only" in command(tmp_path, "cache", "info", bound=True).stdout
    )
    for arguments in (["rm", two[0]], ["rm", "--all"], ["gc", "--max-size", "0"]):
        done = command(tmp_path, "cache", *arguments, env=remote, bound=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "Permission denied" in done.stderr
    assert tree(tmp_path / "cache") == before
