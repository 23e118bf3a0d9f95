"""HDF5 files, asked through a short-lived process: the C library may crash or hang on a damaged one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.errors import SourceError
from unified_backend.formats.excerpts import excerpt

__all__ = ["MAGIC", "read_hdf5"]

MAGIC = b"\x89HDF\r\n\x1a\n"
_READER = Path(__file__).with_name("hdf5_reader.py")
_SECONDS = 15.0  # a sound file of 1 GB takes 0.3


def read_hdf5(path: Path, part: tuple[int, int] | None = None, name: str = "") -> dict[str, Any]:
    """What the reader prints of a file: `attributes`, `weights` and the number of `parameters`.

    Args:
        part: offset and size of the HDF5 file within `path`.
        name: what to call it in messages, if not by its file name.

    Raises:
        SourceError: HDF5 cannot read it.
    """
    # Found where this process finds it; without the working directory, which is a stranger's.
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",  # each thread reserves memory, which is limited
        "HDF5_USE_FILE_LOCKING": "FALSE",  # repositories are mounted read-only
        "HDF5_PLUGIN_PRELOAD": "::",  # no filter libraries
    }
    numbers = map(str, part or ())
    try:
        done = subprocess.run(
            [hosts.interpreter(), "-P", str(_READER), str(path.absolute()), *numbers],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
        result = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        reason = f"HDF5 did not end within {_SECONDS:.0f} s"
    except (ValueError, RecursionError):
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = f"HDF5 ended with code {done.returncode}{f': {excerpt(lines[-1])}' if lines else ''}"
    except OSError as error:
        reason = f"no process could be started to read it: {error.strerror or error}"
    else:
        if isinstance(result, dict) and "error" not in result:
            return result
        reason = excerpt(str(result["error"] if isinstance(result, dict) else result))
    raise SourceError(
        f"{name or path.name} is a damaged HDF5 file", reason, "Save it again, or copy it again completely"
    )
