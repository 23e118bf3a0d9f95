"""Installing into a backends directory: all or nothing, and never over what is not ours."""

from __future__ import annotations

import venv
from pathlib import Path

import pytest
from unified_backend.errors import Refused
from unified_backend.server.install import install, uninstall


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    folder = tmp_path / "backends"
    (folder / "python").mkdir(parents=True)
    return folder


def test_copy_stands_alone(backends: Path) -> None:
    done = install(backends)
    assert (done.folder / "model.py").is_file()
    assert (done.folder / "unified_backend/errors.py").is_file()
    assert not any(path.is_symlink() for path in done.folder.rglob("*"))
    assert not list(done.folder.rglob("__pycache__"))
    assert not done.replaced


def test_link_follows_this_package(backends: Path) -> None:
    folder = install(backends, link=True).folder
    assert (folder / "unified_backend").is_symlink()
    assert (folder / "model.py").is_symlink()


def test_installing_again_replaces_all_of_it(backends: Path) -> None:
    (install(backends).folder / "stale.py").touch()
    done = install(backends)
    assert done.replaced
    assert not (done.folder / "stale.py").exists()
    assert sorted(path.name for path in backends.iterdir()) == ["python", "unified"]


def test_uninstalled_link_leaves_the_package(backends: Path) -> None:
    install(backends, link=True)
    uninstall(backends)
    assert [path.name for path in backends.iterdir()] == ["python"]
    assert Path(install.__code__.co_filename).is_file()


def test_foreign_backend_is_left_alone(backends: Path) -> None:
    (backends / "unified").mkdir()
    (backends / "unified/model.py").write_text("somebody else's")
    with pytest.raises(Refused, match="not put there by triton-unified"):
        install(backends)
    with pytest.raises(Refused, match="not put there by triton-unified"):
        uninstall(backends)
    assert (backends / "unified/model.py").read_text() == "somebody else's"


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not exist"):
        install(tmp_path / "nowhere")


def test_uninstalling_nothing_is_refused(backends: Path) -> None:
    with pytest.raises(Refused, match="not installed there"):
        uninstall(backends)


def test_folder_that_is_no_venv_is_refused(backends: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not a virtual environment"):
        install(backends, python=tmp_path)
    assert not (backends / "unified").exists()


def test_venv_without_the_packages_is_refused_by_name(backends: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    with pytest.raises(Refused, match="cannot import numpy, onnx, onnxruntime, filelock, platformdirs"):
        install(backends, python=tmp_path / "venv")
    assert [path.name for path in backends.iterdir()] == ["python"]


def test_path_that_a_shell_would_split_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "my backends"
    folder.mkdir()
    with pytest.raises(Refused, match="holds a space"):
        install(folder)


def test_directory_without_permission_is_refused() -> None:
    with pytest.raises(Refused, match="cannot write"):
        install(Path("/proc/self"))  # nobody can write there, root neither
