"""One load of a model in a process of its own, as an instance of the server does it: prints what it took as JSON.

    python benchmarks/measuring/one_load.py VERSION_FOLDER

The cache is the one that TRITON_UNIFIED_CACHE names.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from unified_backend.loading import describe, load, open_cache
from unified_backend.pbtxt import read_pbtxt
from unified_backend.serving.warmup import warm_up


def main(folder: Path) -> None:
    """Describe, build or find, load and warm up; then print seconds and bytes."""
    import onnxruntime  # noqa: F401 - the import is the same in every load

    config = read_pbtxt(folder.parent / "config.pbtxt")
    before, began = _bytes_read(), time.perf_counter()
    with open_cache() as cache:
        described = describe(f"{folder.parent.name}/{folder.name}", folder, config, cache)
        loaded = load(described, cache)
        with described.report.phase("warm_up"):
            warm_up(loaded, cache)
        seconds = time.perf_counter() - began
        loaded.runner.close()
    answer = {
        "seconds": seconds,
        "bytes_read": _bytes_read() - before,
        "phases": described.report.seconds,
        "entries": described.report.lookups,
    }
    print(json.dumps(answer))


def _bytes_read() -> int:
    """Bytes this process has asked read() for; pages of mapped files are not among them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
