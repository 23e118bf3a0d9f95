"""Which models of which formats are served, and at what cost: two tables, from one run of the tests.

    python benchmarks/formats.py

Runs the tests that serve models of other formats than ONNX on a real server, and writes what the servers logged of each
conversion between the two marks in docs/reference/measured.md, and the sum of it, one row a format, between those in
README.md. Seconds are this machine's; error and memory are anyone's.
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
EVERY_MODEL, EVERY_FORMAT = ROOT / "docs/reference/measured.md", ROOT / "README.md"
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
    """Run the tests and write the tables; the exit code of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"tests/server/{name}.py" for name in TESTS]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/run", *files]
        done = subprocess.run([*command, "-o", "tmp_path_retention_policy=all"], cwd=ROOT, check=False)
        if done.returncode == 0:
            rows = sorted({row for log in Path(folder).rglob("triton-*.log") for row in _rows(log.read_text())})
            for page, table in ((EVERY_MODEL, every_model(rows)), (EVERY_FORMAT, every_format(rows))):
                before, _, rest = page.read_text().partition(BEGIN)
                page.write_text(f"{before}{BEGIN}\n{table}{END}{rest.partition(END)[2]}")
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


def every_model(rows: list[Row]) -> str:
    """One row a model and way."""
    head = ("format", "model", "way", "seconds", "peak MB", "compared with", "max abs error", "batch", "engine")
    return _table([head, *(tuple(vars(row).values()) for row in rows)])


def read(table: str) -> list[Row]:
    """The rows that `every_model` wrote."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][2:]
    return [Row(*(cell.strip() for cell in line)) for line in lines]


def every_format(rows: list[Row]) -> str:
    """One row a format: the ways together, the range of seconds, the largest memory and error."""
    lines = [
        ("format", "models", "as it is, by", "converted in, served by", "compared with", "max abs error", "s", "MB")
    ]
    for form in dict.fromkeys(row.form for row in rows):
        of = [row for row in rows if row.form == form]
        converted = [row for row in of if row.seconds]
        judges = dict.fromkeys(row.reference for row in sorted(of, key=lambda row: not row.seconds))
        seconds = sorted(float(row.seconds) for row in converted)
        errors = [row.error for row in of if row.error]
        lines.append(
            (
                form,
                str(len({row.model for row in of})),
                ", ".join(sorted({row.engine for row in of if not row.seconds})),
                ", ".join(sorted({f"{row.way[11:-1]}: {row.engine}" for row in converted})),
                ", ".join([name for name in judges if name not in _NO_JUDGE][:1]) or "itself alone",
                max(errors, key=float, default=""),
                " to ".join(dict.fromkeys(str(one) for one in (*seconds[:1], *seconds[-1:]))),
                max((row.peak for row in converted), key=int, default=""),
            )
        )
    return _table(lines)


def _table(lines: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], ("---",) * len(lines[0]), *lines[1:]))


if __name__ == "__main__":
    sys.exit(main())
