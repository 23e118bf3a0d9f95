"""What a load costs: with an empty cache, the first time from a full one, and from then on.

    python benchmarks/load.py --models ocr_recognition --rounds 5

Each load is a process of its own and ends with a model that is warm, as an instance in the server. Ratios are of loads
a few seconds apart, so that they hold on a busy machine too. Exits with 1 if a promise of the documentation is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from measuring.models import LARGE, model_file
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent / "model_repository"
ONE_LOAD = Path(__file__).resolve().parent / "measuring" / "one_load.py"
MODELS = ("ocr_recognition", "vgg19")
# A file is known by its times only once it has not changed for two seconds.
SETTLED_SECONDS = 2.2
MOST_OF_COLD = 0.15  # that a warm load of the OCR recogniser may take
MOST_READ_WARM = 4 << 20  # bytes: manifests, notes and the graph without its weights

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@dataclass(frozen=True)
class Load:
    """One load: seconds, bytes asked of read(), and where each entry came from."""

    seconds: float
    bytes_read: int
    phases: dict[str, float]
    entries: dict[str, str]


@dataclass(frozen=True)
class Round:
    """Loads of one model from an empty cache on.

    Attributes:
        cold: nothing is cached.
        first: everything is, and this host reads it for the first time, to check it.
        warm: it has been checked.
    """

    cold: Load
    first: Load
    warm: Load


def main() -> int:
    options = _options()
    broken = []
    results: dict[str, list[Round]] = {}
    for name in options.models:
        with tempfile.TemporaryDirectory(prefix="load-") as folder:
            version = _version_folder(name, Path(folder))
            if version is None:
                console.print(f"{name} is missing: run `make setup`", style="red")
                return 2
            size = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
            console.print(f"{name}, {size / 1e6:.0f} MB: {options.rounds} rounds")
            time.sleep(SETTLED_SECONDS)
            results[name] = [_round(version, Path(folder) / f"cache{n}") for n in range(options.rounds)]
        ratio = median(r.warm.seconds / r.cold.seconds for r in results[name])
        if name == "ocr_recognition" and ratio > MOST_OF_COLD:
            broken.append(f"a warm load of {name} takes {ratio:.2f} of a cold one, not {MOST_OF_COLD} or less")
        read = max(r.warm.bytes_read for r in results[name])
        if read > MOST_READ_WARM:
            broken.append(f"a warm load of {name} reads {read / 1e6:.1f} MB: something is read again")
    console.print(_table(results))
    for text in broken:
        console.print(f"FAIL  {text}", style="red")
    if options.json:
        values = {name: [asdict(single) for single in rounds] for name, rounds in results.items()}
        options.json.write_text(json.dumps(values, indent=1) + "\n")
    return 1 if broken else 0


def _round(version: Path, cache: Path) -> Round:
    cold = _load(version, cache)
    time.sleep(SETTLED_SECONDS)
    first = _load(version, cache)
    warm = _load(version, cache)
    shutil.rmtree(cache)
    return Round(cold, first, warm)


def _load(version: Path, cache: Path) -> Load:
    environment = {**os.environ, "TRITON_UNIFIED_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, str(ONE_LOAD), str(version)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the load failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return Load(**answer)


def _version_folder(name: str, scratch: Path) -> Path | None:
    if name == LARGE.name:
        version = scratch / "models" / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text('backend: "unified"\n')
        shutil.copyfile(model_file(LARGE), version / "model.onnx")
        return version
    version = REPOSITORY / name / "1"
    return version if any(version.glob("*.onnx")) else None


def _table(results: dict[str, list[Round]]) -> Table:
    table = Table("model", "load", "seconds", "of cold", "MB read", title="Medians")
    for name, rounds in results.items():
        for kind in ("cold", "first", "warm"):
            loads: list[Load] = [getattr(single, kind) for single in rounds]
            share = median(load.seconds / single.cold.seconds for load, single in zip(loads, rounds, strict=True))
            read = median(load.bytes_read for load in loads)
            table.add_row(
                name, kind, f"{median(load.seconds for load in loads):.2f}", f"{share:.2f}", f"{read / 1e6:.1f}"
            )
    return table


class _Options(argparse.Namespace):
    models: list[str]
    rounds: int
    json: Path | None


def _options() -> _Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=list(MODELS), help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument("--rounds", type=int, default=3, help="cold, first and warm loads of each model; default 3")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args(namespace=_Options())
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(MODELS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
