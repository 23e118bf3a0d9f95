"""Which models of which formats are served, and at what cost: the table of the README, from a run of the tests.

    python benchmarks/formats.py

Runs the tests that serve models of other formats than ONNX on a real server, and writes what the servers logged of each
conversion between the two marks in README.md. Seconds are this machine's; error and memory are anyone's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TESTS = ("test_tensorflow_family", "test_torch", "test_torch_real", "test_mxnet", "test_trees", "test_paddle")
BEGIN, END = "<!-- what benchmarks/formats.py wrote -->", "<!-- until here -->"

_NO_JUDGE = ("itself-alone", "nothing")
_MODEL = r"model=(?P<model>\S+)/\d+ "
_CONVERTED = re.compile(
    rf"converted {_MODEL}format=(?P<form>\S+) toolchain=(?P<by>\S+) seconds=(?P<seconds>\S+) "
    r"peak_rss_mb=(?P<peak>\d+) reference=(?P<reference>\S+) max_abs=(?P<error>\S+)"
)
_TAKEN = re.compile(
    rf"taken as it is {_MODEL}format=(?P<form>\S+) engine=(?P<by>\S+) "
    r"reference=(?P<reference>\S+) max_abs=(?P<error>\S+)"
)
_LOADED = re.compile(rf"loaded {_MODEL}.* engine=(?P<engine>\S+) max_batch_size=(?P<batch>\d+) ")


@dataclass(frozen=True, order=True)
class Row:
    """One model by one way; `seconds` and `peak` (MB) are of its conversion, "" where there was none."""

    form: str
    model: str
    way: str
    seconds: str
    peak: str
    reference: str
    error: str
    batch: str
    engine: str


def main() -> int:
    """Run the tests and write the table; the exit code of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"tests/server/{name}.py" for name in TESTS]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/run", *files]
        done = subprocess.run([*command, "-o", "tmp_path_retention_policy=all"], cwd=ROOT, check=False)
        if done.returncode == 0:
            rows = sorted({row for log in Path(folder).rglob("triton-*.log") for row in _rows(log.read_text())})
            text = README.read_text()
            before, after = text.partition(BEGIN)[0], text.partition(END)[2]
            README.write_text(f"{before}{BEGIN}\n{_table(rows)}{END}{after}")
    return done.returncode


def _rows(log: str) -> Iterator[Row]:
    """The models that a server loaded for the first time."""
    loaded = {match["model"]: match for match in _LOADED.finditer(log)}
    for match in (*_CONVERTED.finditer(log), *_TAKEN.finditer(log)):
        if at := loaded.get(match["model"]):
            found = {"seconds": "", "peak": "", **match.groupdict()}
            yield Row(
                form=found["form"],
                model=found["model"].removesuffix(".unified"),
                way=f"converted ({found['by']})" if found["seconds"] else "as it is",
                seconds=found["seconds"],
                peak=found["peak"],
                reference=found["reference"],
                error="" if found["reference"] in _NO_JUDGE else found["error"],
                batch=at["batch"],
                engine=at["engine"],
            )


def _table(rows: list[Row]) -> str:
    head = ("format", "model", "way", "seconds", "peak MB", "compared with", "max abs error", "batch", "engine")
    lines = [head, ("---",) * len(head), *(vars(row).values() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
