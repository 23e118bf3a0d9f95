"""scripts/make_env.py and scripts/setup.sh: `.venv` is complete or done again, and never tied to the cache."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def make_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_env", SCRIPTS / "make_env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def base(tmp_path: Path, make_env: ModuleType) -> Path:
    """A cached environment with one package and its command."""
    folder = tmp_path / "cache" / "environment"
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    (make_env.site_packages(folder) / "greeting.py").write_text("def main():\n    print('hello')\n")
    command = folder / "bin" / "greet"
    command.write_text(f"#!{folder}/bin/python3\nfrom greeting import main\nmain()\n")
    command.chmod(0o755)
    return folder


@pytest.mark.parametrize("name", ["clone", "a clone", "c" * 130])
def test_a_linked_environment_outlives_the_cache(name: str, base: Path, tmp_path: Path, make_env: ModuleType) -> None:
    target = tmp_path / name / ".venv"
    target.parent.mkdir()
    make_env.link_environment(base, target)
    linked = make_env.site_packages(target) / "greeting.py"
    assert linked.stat().st_nlink == 2
    shutil.rmtree(base)
    assert subprocess.run([target / "bin" / "greet"], capture_output=True, text=True, check=True).stdout == "hello\n"
    assert os.fsencode(base) not in (target / "bin" / "activate").read_bytes() + (target / "pyvenv.cfg").read_bytes()


def test_commands_written_for_a_path_with_a_space_are_rewritten(
    base: Path, tmp_path: Path, make_env: ModuleType
) -> None:
    script = base / "bin" / "greet"
    script.write_text(f"#!/bin/sh\n'''exec' \"{base}/bin/python3\" \"$0\" \"$@\"\n' '''\nprint('hello')\n")
    make_env.place_script(script, tmp_path / "bin-greet", base)
    assert (tmp_path / "bin-greet").read_text() == f"#!{tmp_path}/python3\nprint('hello')\n"


def test_an_environment_that_was_interrupted_is_not_complete(base: Path, tmp_path: Path, make_env: ModuleType) -> None:
    target = tmp_path / ".venv"
    make_env.link_environment(base, target)
    assert not make_env.is_complete(target, "key")
    (target / ".environment").write_text("key")
    assert make_env.is_complete(target, "key")
    assert not make_env.is_complete(target, "another")


def test_an_old_environment_is_replaced_whole(base: Path, tmp_path: Path, make_env: ModuleType) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "stale").touch()
    make_env.link_environment(base, tmp_path / ".venv")
    assert not (tmp_path / ".venv" / "bin" / "stale").exists()


def test_the_cache_keeps_the_environments_used_last(tmp_path: Path, make_env: ModuleType) -> None:
    names = [*(f"environment{age}" for age in range(6)), "made.part-now", "made.part-long-ago"]
    for age, name in enumerate(names):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, None if name == "made.part-now" else (1e9 - age, 1e9 - age))
    make_env.forget_unused(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names[: make_env.KEEP], "made.part-now"}


def test_a_lock_is_waited_for(tmp_path: Path, make_env: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path / "lock"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with make_env.locked(tmp_path / "lock"):
            assert "waiting for another set-up" in capfd.readouterr().out


def test_a_python_that_will_not_do_is_refused_with_what_to_install(tmp_path: Path) -> None:
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    for name in ("requirements.lock", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(SCRIPTS.parent / name)
    environment = {**os.environ, "PYTHON": "/bin/false"}
    run = subprocess.run(
        [tmp_path / "scripts" / "setup.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "PYTHON=/path/to/python3" in run.stderr
    assert not (tmp_path / ".venv").exists()
