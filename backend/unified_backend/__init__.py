"""One Triton backend that serves a trained model in whatever format it was saved."""

from __future__ import annotations

import os

__all__ = ["__version__"]

__version__ = "0.1.0"

# ONNX Runtime 1.31's wheel for Linux reports to its maker unless told not to, before it is imported: a session file in
# the temporary directory, a database and a device's id below ~/.cache, a thread that sends. A server does none of it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
