"""The real command, in a process of its own, for tests of what it prints and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from unified_backend.cache import Cache, Key

__all__ = ["RELU", "add_entry", "command", "printed", "read_only", "tree", "unified_model"]

COMMAND = Path(sys.executable).parent / "triton-unified"
RELU = '<ir_version: 9, opset_import: ["":17]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
# Root writes to read-only folders, unless this is taken from it.
_AS_USER = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []


def command(
    home: Path, *arguments: str | Path, env: Mapping[str, str] | None = None, bound: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `triton-unified` with its cache in `home/cache`.

    Args:
        bound: by permissions, root too.
    """
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TRITON_UNIFIED_CACHE": str(home / "cache")}
    return subprocess.run(
        [*(_AS_USER if bound else ()), COMMAND, *arguments],
        capture_output=True,
        text=True,
        env={**environment, **(env or {})},
        check=False,
    )


def printed(home: Path, *arguments: str | Path, env: Mapping[str, str] | None = None, code: int = 0) -> Any:
    """What the command prints with --json, which exits with `code`."""
    done = command(home, *arguments, "--json", env=env)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def add_entry(
    cache: Cache, kind: str, fields: Mapping[str, Any], files: Mapping[str, bytes] | None = None, model: str = "a/1"
) -> str:
    """Make an entry, and return its key's digest."""

    def make(folder: Path) -> dict[str, Any]:
        for name, data in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return {}

    key = Key(kind, fields)
    cache.get_or_make(key, make, model)
    return key.digest


def unified_model(repository: Path, name: str, text: str = RELU, version: int = 1, config: str = "") -> Path:
    """Add a version of an ONNX model, given in ONNX's text form, to a repository; returns the model's folder."""
    folder = repository / name
    (folder / str(version)).mkdir(parents=True)
    onnx.save_model(onnx.parser.parse_model(text), folder / str(version) / "net")
    if config:
        (folder / "config.pbtxt").write_text(config)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_only(folder: Path) -> None:
    """Take the right to write from a folder and all below it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
