"""`triton-unified build`: the cache filled ahead of time, so that nothing is built when a server starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import RELU, command, printed, read_only, unified_model

OTHER = 'backend: "onnxruntime"'
REQUIRED = 'backend: "unified" parameters { key: "build" value { string_value: "never" } }'


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two versions of relu, a model whose config requires it to be cached, and another backend's."""
    folder = tmp_path / "models"
    unified_model(folder, "relu.unified")
    unified_model(folder, "relu.unified", RELU.replace("Relu(x)", "Neg(x)"), version=2)
    unified_model(folder, "required", RELU.replace("Relu(x)", "Abs(x)"), config=REQUIRED)
    unified_model(folder, "other", config=OTHER)
    return folder


def statuses(home: Path, *arguments: str | Path, **options) -> dict[str, str]:
    rows = printed(home, "build", *arguments, **options)["models"]
    return {f"{row['model']}/{row['version']}": row["status"] for row in rows}


def here(home: Path) -> set[str]:
    return {path.name for path in (home / "cache" / "entries").glob("*/*/*")}


def test_what_was_built_ahead_is_loaded_where_nothing_may_be_built(tmp_path, repository):
    required = {"TRITON_UNIFIED_REQUIRE_CACHED": "1"}
    refused = command(tmp_path, "check", repository / "relu.unified", env=required)
    assert refused.returncode == 1
    assert "triton-unified build REPOSITORY --model relu.unified" in refused.stderr
    expected = {"other/None": "skipped", "relu.unified/1": "built", "relu.unified/2": "built", "required/1": "built"}
    assert statuses(tmp_path, repository, "--jobs", "2", env=required) == expected
    for model in ("relu.unified", "required"):
        assert command(tmp_path, "check", repository / model, env=required).returncode == 0


def test_the_table_says_what_became_of_each_and_a_failure_stops_no_other(tmp_path, repository):
    unified_model(repository, "broken.unified", RELU.replace("Relu(x)", "Nope(x)"))
    (repository / "garbled").mkdir()
    (repository / "garbled" / "config.pbtxt").write_text("backend: 3")
    (repository / "empty.unified").mkdir()
    (repository / "empty.unified" / "config.pbtxt").write_text("")
    done = command(tmp_path, "build", repository)
    assert done.returncode == 1
    rows = {tuple(line.split("\t")[:3]): line.split("\t")[-1] for line in done.stdout.splitlines() if "\t" in line}
    assert rows.keys() == {
        ("broken.unified", "1", "failed"),
        ("empty.unified", "-", "failed"),
        ("garbled", "-", "failed"),
        ("other", "-", "skipped"),
        ("relu.unified", "1", "built"),
        ("relu.unified", "2", "built"),
        ("required", "1", "built"),
    }
    assert "Nope" in rows["broken.unified", "1", "failed"]
    assert "does not parse" in rows["garbled", "-", "failed"]
    assert "onnxruntime" in rows["other", "-", "skipped"]
    assert done.stdout.endswith("models: built=3 failed=3 skipped=1\n")
    assert statuses(tmp_path, repository, "--model", "relu.unified") == {
        "relu.unified/1": "hit",
        "relu.unified/2": "hit",
    }


def test_one_version_of_one_model_is_built_when_asked(tmp_path, repository):
    assert statuses(tmp_path, repository, "--model", "relu.unified", "--version", "2") == {"relu.unified/2": "built"}
    command(tmp_path, "build", repository, "--model", "relu.unified", "--version", "2")
    assert {row["models"][0] for row in printed(tmp_path, "cache", "ls")} == {"relu.unified/2"}


CRASH = """
import os, signal, sys
if "unified_backend.building" in sys.orig_argv and any(word.endswith("required") for word in sys.orig_argv):
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_crash_is_a_row(tmp_path, repository):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASH)
    found = printed(tmp_path, "build", repository, env={"PYTHONPATH": str(tmp_path / "site")}, code=1)
    rows = {row["model"]: row for row in found["models"]}
    assert rows["required"]["status"] == "failed"
    assert rows["required"]["reason"] == "its process died of SIGSEGV: last words"
    assert rows["relu.unified"]["status"] == "built"


@pytest.fixture(params=["folder", "s3"])
def remote(request, tmp_path) -> dict[str, str]:
    if request.param == "folder":
        return {"TRITON_UNIFIED_REMOTE_CACHE": str(tmp_path / "remote")}
    store = request.getfixturevalue("s3")
    return {**store.environment, "TRITON_UNIFIED_REMOTE_CACHE": store.url()}


def test_the_bucket_is_complete_when_the_job_ends(tmp_path, repository, remote):
    """Also of what was there before the job had a bucket."""
    command(tmp_path, "build", repository, "--model", "relu.unified", "--version", "1")
    built = printed(tmp_path, "build", repository, env=remote)
    assert {row["status"] for row in built["models"]} == {"hit", "built", "skipped"}
    other = tmp_path / "other"
    assert set(statuses(other, repository, env=remote).values()) == {"pulled", "skipped"}
    assert here(other) == here(tmp_path)
    assert printed(tmp_path, "cache", "info")["waiting_to_be_pushed"] == 0


def test_a_bucket_that_fails_fails_the_job_and_not_the_models(tmp_path, repository):
    dead = {
        "TRITON_UNIFIED_REMOTE_CACHE": "s3://bucket",
        "AWS_ENDPOINT": "http://127.0.0.1:9",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    found = printed(tmp_path, "build", repository, "--model", "required", env=dead, code=1)
    assert [row["status"] for row in found["models"]] == ["built"]
    assert {row["outcome"] for row in found["pushed"]} == {"failed"}


def test_it_builds_for_this_host_and_says_what_that_is(tmp_path, repository):
    device = printed(tmp_path, "build", repository, "--model", "required", "--for", "cpu")["device"]
    assert device in {row["device"] for row in printed(tmp_path, "cache", "ls")}
    assert statuses(tmp_path, repository, "--model", "required", "--for", device) == {"required/1": "hit"}
    refused = command(tmp_path, "build", repository, "--for", "cpu:other")
    assert refused.returncode == 2
    assert device in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "does not exist"),
        (["models/relu.unified"], "is one model"),
        (["models", "--model", "nope"], "it has other, relu.unified, required"),
        (["models", "--model", "other"], "its backend is onnxruntime"),
        (["models", "--version", "9"], "no model has a version 9"),
        (["s3://bucket/models"], "is not a directory"),
        (["models", "--jobs", "0"], "--jobs"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path, repository, arguments, words):
    first = arguments[0] if "://" in arguments[0] else tmp_path / arguments[0]
    done = command(tmp_path, "build", first, *arguments[1:])
    assert done.returncode == 2
    assert words in done.stderr
    assert here(tmp_path) == set()


def test_what_could_not_be_kept_was_not_built_ahead(tmp_path, repository):
    (tmp_path / "cache").mkdir()
    read_only(tmp_path / "cache")
    done = command(tmp_path, "build", repository, "--model", "required", bound=True)
    assert done.returncode == 1
    assert "is not in the cache" in done.stdout


def test_a_cache_too_small_for_the_repository_is_told(tmp_path, repository):
    tiny = {"TRITON_UNIFIED_CACHE_MAX_SIZE": "1"}
    found = statuses(tmp_path, repository, "--model", "relu.unified", env=tiny, code=1)
    assert found == {"relu.unified/1": "failed", "relu.unified/2": "built"}


def test_a_filled_cache_is_used_read_only(tmp_path, repository):
    command(tmp_path, "build", repository)
    read_only(tmp_path / "cache")
    done = command(tmp_path, "build", repository, "--json", bound=True)
    assert done.returncode == 0, done.stderr
    assert {row["status"] for row in json.loads(done.stdout)["models"]} == {"hit", "skipped"}
