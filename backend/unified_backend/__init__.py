"""One Triton backend that serves a trained model in whatever format it was saved."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
