"""ONNX Runtime's library of custom operators, found without importing its package.

The import would make protobuf run in Python alone, in this process and in every server that a test starts: reading a
SavedModel takes fifty times as long there.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["LIBRARY"]

_SPEC = importlib.util.find_spec("onnxruntime_extensions")
assert _SPEC is not None
assert _SPEC.origin is not None
(_FOUND,) = Path(_SPEC.origin).parent.glob("_extensions_pydll*.so")
LIBRARY = str(_FOUND)
