"""Triton's entry point: hands every call of the Python backend to `unified_backend.serving.adapter`.

Kept tiny because the server's working directory comes first on the stub's `sys.path`: whatever this file imports by a
common name could be shadowed there. The package that lies beside this file wins over any other of its name.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
if (_HERE / "unified_backend" / "serving").is_dir():
    sys.path.insert(0, str(_HERE))

from unified_backend.serving.adapter import ModelInstance, complete_model_config  # noqa: E402

__all__ = ["TritonPythonModel"]


class TritonPythonModel(ModelInstance):
    """One instance of one model version; its life is `ModelInstance`'s."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):  # type: ignore[no-untyped-def]
        """Fill in what config.pbtxt leaves open, from the model itself."""
        return complete_model_config(auto_complete_model_config)
