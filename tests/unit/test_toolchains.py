"""Toolchain environments, made for real by pip out of a folder of wheels: whole or not there at all."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import made_models
import pytest
from commands import command, printed
from unified_backend import hosts
from unified_backend.errors import ToolchainError
from unified_backend.toolchains import environment
from unified_backend.toolchains.catalogue import TOOLCHAINS, Toolchain


def wheel(folder: Path, content: str = "VALUE = 7\n") -> Path:
    """A wheel of one module, `tiny`."""
    info = "tiny-1.0.dist-info"
    files = {
        "tiny.py": content,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for name, text in files.items()
    }
    record = "".join(f"{name},sha256={digest},{len(files[name])}\n" for name, digest in digests.items())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return path


def toolchain(folder: Path, content: str = "VALUE = 7\n", imports: tuple[str, ...] = ("tiny",)) -> Toolchain:
    """One whose wheels are in `folder`."""
    digest = hashlib.sha256(wheel(folder, content).read_bytes()).hexdigest()
    lock = folder / "tiny.lock"
    lock.write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    return Toolchain("tiny", lock, "no.worker", imports, frozenset(), "")


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.glob("*") if ".part-" in path.name]


def test_it_is_installed_from_a_wheelhouse_and_runs(tmp_path):
    tiny = toolchain(tmp_path / "wheels")
    assert environment.python_of(tiny, tmp_path) is None
    python = environment.install(tiny, tmp_path, tmp_path / "wheels")
    assert environment.python_of(tiny, tmp_path) == python
    done = subprocess.run([python, "-I", "-c", "import tiny; print(tiny.VALUE)"], capture_output=True, text=True)
    assert done.stdout == "7\n"
    assert environment.verify(tiny, tmp_path) == []


def test_no_pip_is_left_for_a_converter_to_call(tmp_path):
    python = environment.install(toolchain(tmp_path / "wheels"), tmp_path, tmp_path / "wheels")
    done = subprocess.run([python, "-I", "-m", "pip", "--version"], capture_output=True, text=True)
    assert "No module named pip" in done.stderr


def test_several_at_once_install_it_once(tmp_path, caplog):
    caplog.set_level("INFO")
    tiny = toolchain(tmp_path / "wheels")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: environment.install(tiny, tmp_path, tmp_path / "wheels"), range(4)))
    assert len(found) == 1
    assert caplog.text.count("installed toolchain=tiny") == 1


def test_a_wheel_that_is_not_the_one_locked_is_refused_and_nothing_is_left(tmp_path):
    tiny = toolchain(tmp_path / "wheels")
    wheel(tmp_path / "wheels", "VALUE = 8\n")
    with pytest.raises(ToolchainError, match=r"(?i)hash"):
        environment.install(tiny, tmp_path, tmp_path / "wheels")
    assert environment.python_of(tiny, tmp_path) is None
    assert leftovers(tmp_path) == []


def test_what_does_not_import_is_no_toolchain(tmp_path):
    tiny = toolchain(tmp_path / "wheels", "raise ImportError('half of me is missing')\n")
    with pytest.raises(ToolchainError, match="half of me is missing"):
        environment.install(tiny, tmp_path, tmp_path / "wheels")
    assert environment.python_of(tiny, tmp_path) is None


def test_a_folder_without_the_wheels_is_named_before_anything_is_made(tmp_path):
    """Empty, or with those of something else, or of another version."""
    folder = tmp_path / "usb stick"
    folder.mkdir()
    empty = command(tmp_path, "toolchain", "install", "tensorflow", "--wheelhouse", folder)
    wheel(folder)
    other = command(tmp_path, "toolchain", "install", "tensorflow", "--wheelhouse", folder)
    for name in ("numpy-1.26.3-cp311-cp311-linux_x86_64.whl", "Absl_Py-2.5.1-py3-none-any.whl"):
        (folder / name).write_bytes(b"")
    older = command(tmp_path, "toolchain", "install", "tensorflow", "--wheelhouse", folder)
    for done in (empty, other, older):
        assert done.returncode == 2
        assert f"{folder} has not got the wheels of the toolchain tensorflow" in done.stderr
        assert f"pip download --no-deps --dest '{folder}' --requirement " in done.stderr
        assert "phase=" not in done.stderr
    assert "there are no wheels in it" in empty.stderr
    assert "there is none of absl-py 2.5.1, ai-edge-litert 2.3.0" in other.stderr
    assert "there is none of ai-edge-litert 2.3.0" in older.stderr
    assert (
        "numpy 1.26.4" in command(tmp_path, "toolchain", "install", "--wheelhouse", only_numpy_missing(tmp_path)).stderr
    )
    assert [path.name for path in (tmp_path / "cache" / "toolchains").glob("*")] == [".locks"]


def only_numpy_missing(folder: Path) -> Path:
    """Files named as the wheels of the tensorflow toolchain, but for one that is older."""
    target = folder / "nearly"
    target.mkdir()
    for name, version in TOOLCHAINS["tensorflow"].pinned:
        version = "1.26.3" if name == "numpy" else version
        (target / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").touch()
    return target


def test_an_environment_without_pip_uses_that_of_the_python_it_was_made_from(tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(hosts, "interpreter", lambda: str(tmp_path / "bare" / "bin" / "python"))
    tiny = toolchain(tmp_path / "wheels")
    assert environment.install(tiny, tmp_path, tmp_path / "wheels") == environment.python_of(tiny, tmp_path)


def test_without_a_route_to_an_index_the_error_says_so_and_names_the_way_out(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    began = time.monotonic()
    with pytest.raises(ToolchainError, match=r"(?s)no connection to the index.*refused.*install tiny --wheelhouse DIR"):
        environment.require(toolchain(tmp_path / "wheels"), tmp_path, "auto", "net/1")
    assert time.monotonic() - began < 60
    assert [line for line in caplog.messages if line.startswith("waiting model=net/1 for=toolchain name=tiny")]


def test_what_a_maker_that_died_left_is_not_used_and_is_cleaned_up(tmp_path):
    tiny = toolchain(tmp_path / "wheels")
    dead = tmp_path / "tiny.part-dead"
    dead.mkdir(parents=True)
    (dead / "half").write_bytes(bytes(10))
    environment.install(tiny, tmp_path, tmp_path / "wheels")
    assert leftovers(tmp_path) == []


def test_changed_and_missing_files_are_found(tmp_path):
    tiny = toolchain(tmp_path / "wheels")
    python = environment.install(tiny, tmp_path, tmp_path / "wheels")
    (module,) = python.parent.parent.glob("lib/*/site-packages/tiny.py")
    module.write_text("VALUE = 9\n")
    assert environment.verify(tiny, tmp_path) == ["tiny.py is not what was installed"]
    module.unlink()
    assert environment.verify(tiny, tmp_path) == ["tiny.py is missing"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda site: (site / "tiny.py").unlink(), "tiny.py is missing"),
        (lambda site: (site / "tiny.py").write_text("VALUE"), "tiny.py has 5 bytes in place of 10"),
        (lambda site: shutil.rmtree(site / "tiny-1.0.dist-info"), "tiny is not installed"),
        (lambda site: (site / "tiny-1.0.dist-info/RECORD").write_bytes(bytes(99)), "RECORD is damaged"),
        (lambda site: (site / "../../../bin/python").unlink(), "bin/python does not start"),
    ],
)
def test_a_damaged_one_is_known_at_a_glance_and_installed_again(tmp_path, caplog, harm, said):
    tiny = toolchain(tmp_path / "wheels")
    python = environment.install(tiny, tmp_path, tmp_path / "wheels")
    assert environment.state(tiny, tmp_path) == "installed"
    (site,) = python.parent.parent.glob("lib/*/site-packages")
    harm(site)
    assert environment.state(tiny, tmp_path) == "damaged"
    assert any(said in problem for problem in environment.verify(tiny, tmp_path))
    assert environment.install(tiny, tmp_path, tmp_path / "wheels") == python
    assert environment.verify(tiny, tmp_path) == []
    assert leftovers(tmp_path) == []
    (line,) = [line for line in caplog.messages if line.startswith("toolchain damaged name=tiny")]
    assert said in line


def test_one_that_is_whole_is_not_installed_again(tmp_path, caplog):
    caplog.set_level("INFO")
    tiny = toolchain(tmp_path / "wheels")
    environment.install(tiny, tmp_path, tmp_path / "wheels")
    environment.install(tiny, tmp_path, tmp_path / "empty")  # whose folder of wheels nobody looks into then
    assert caplog.text.count("installed toolchain=tiny") == 1


@pytest.mark.slow
def test_the_commands_tell_a_damaged_one(tmp_path):
    """The real one, as links, of which one is taken away."""
    whole = made_models.toolchain_python("tensorflow").parent.parent
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "cache" / "toolchains" / whole.name
    (site,) = whole.glob("lib/*/site-packages")
    mirror = folder / site.relative_to(whole)
    mirror.mkdir(parents=True)
    for path in (whole / "bin", whole / "toolchain.json", *site.iterdir()):
        (folder / path.relative_to(whole)).symlink_to(path)
    began = time.monotonic()
    row = printed(tmp_path, "toolchain", "list")[0]
    assert row["state"] == "installed"
    assert time.monotonic() - began < 5
    (mirror / "keras").unlink()
    row = printed(tmp_path, "toolchain", "list")[0]
    assert row["state"] == "damaged"
    verified = command(tmp_path, "toolchain", "verify")
    assert verified.returncode == 1
    assert "tensorflow\tdamaged\tkeras/__init__.py is missing\n" in verified.stdout
    again = command(tmp_path, "toolchain", "install", "--wheelhouse", tmp_path / "empty")
    assert again.returncode == 2
    assert "toolchain damaged name=tensorflow" in again.stderr


def test_another_lock_is_another_environment_and_the_old_one_can_be_removed(tmp_path):
    old = toolchain(tmp_path / "wheels")
    environment.install(old, tmp_path, tmp_path / "wheels")
    environment.install(toolchain(tmp_path / "more", "VALUE = 8\n"), tmp_path, tmp_path / "more")
    found = environment.installed(tmp_path)
    assert [each.name for each in found] == ["tiny", "tiny"]
    environment.remove(found[0])
    assert len(environment.installed(tmp_path)) == 1


@pytest.mark.parametrize(("mode", "words"), [("installed", "not installed"), ("off", "is off")])
def test_where_installing_is_off_the_error_names_the_command(tmp_path, mode, words):
    tiny = toolchain(tmp_path / "wheels")
    with pytest.raises(ToolchainError, match=f"{words}(.|\n)*triton-unified toolchain install tiny"):
        environment.require(tiny, tmp_path, mode, "net/1")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(ToolchainError, match="could not be installed in"):
        environment.install(toolchain(tmp_path / "wheels"), tmp_path / "cache", tmp_path / "wheels")


def test_a_folder_of_their_own_is_where_toolchains_are(tmp_path):
    """As in an image, which has them outside the cache's volume."""
    tiny = toolchain(tmp_path / "wheels")
    python = environment.install(tiny, tmp_path / "image", tmp_path / "wheels")
    image = {"TRITON_UNIFIED_TOOLCHAIN_DIR": str(tmp_path / "image")}
    *_, old = printed(tmp_path, "toolchain", "list", env=image)
    assert (old["name"], old["folder"]) == ("tiny", str(python.parent.parent))


def test_the_commands_list_and_refuse(tmp_path):
    row = printed(tmp_path, "toolchain", "list")[0]
    assert (row["name"], row["state"]) == ("tensorflow", "missing")
    assert "savedmodel" in row["formats"]
    unknown = command(tmp_path, "toolchain", "install", "pytorch")
    assert unknown.returncode == 2
    assert "there are tensorflow, torch" in unknown.stderr
    for names in (["tensorflow", "torch"], ["tensorflow"]):
        missing = command(tmp_path, "toolchain", "verify", *names)
        assert missing.returncode == 1
        assert f"error: no toolchain is installed of {' '.join(names)}: there is none in " in missing.stderr
        assert f"Run `triton-unified toolchain install {' '.join(names)}`" in missing.stderr
    assert json.loads(command(tmp_path, "toolchain", "list", "--json").stdout)
