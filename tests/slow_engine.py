"""An engine of a package of its own, as a user may bring one: OpenVINO, but its builds take long, and one fails."""

from __future__ import annotations

import os
import sys
import time
import venv
from pathlib import Path
from typing import Any

from unified_backend.engines.openvino import OpenVino
from unified_backend.errors import EngineError


class SlowEngine(OpenVino):
    """Each build appends a line to the file SLOW_ENGINE_LOG; those of models that are named `refused` fail."""

    name = "slow"
    accepts = frozenset({"onnx"})
    builds_slowly = True

    def build(self, canonical: Any, settings: Any, folder: Path) -> dict[str, Any]:
        with Path(os.environ["SLOW_ENGINE_LOG"]).open("a") as log:
            log.write(f"{canonical.label} pid={os.getpid()} nice={os.nice(0)}\n")
        if "refused" in canonical.label:
            raise EngineError(f"{canonical.label}: not built", "it does not like the model", "Take another")
        time.sleep(float(os.environ["SLOW_ENGINE_SECONDS"]))
        return super().build(canonical, settings, folder)


def environment(folder: Path) -> str:
    """A Python environment in `folder` that has the package, and all that this one has; the parameter that names it."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    information = packages / "slow_engine-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-engine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[unified_backend.engines]\nslow = slow_engine:SlowEngine\n")
    (packages / "slow_engine.py").write_bytes(Path(__file__).read_bytes())
    return f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{folder}" }} }}\n'
