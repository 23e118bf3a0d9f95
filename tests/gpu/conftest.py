"""Tests that need an NVIDIA GPU: `pytest tests/gpu`; on a host without one there are none."""

from __future__ import annotations

import sys
from pathlib import Path

from unified_backend.gpus import driver

sys.path.append(str(Path(__file__).parent.parent / "server"))
collect_ignore_glob = [] if driver().gpus else ["test_*.py"]
