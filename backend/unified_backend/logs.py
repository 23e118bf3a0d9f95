"""Where log lines go: Triton's own logger once an instance runs, standard error before that and on the command line."""

from __future__ import annotations

import logging
import sys
from typing import Any

from unified_backend.errors import printable

__all__ = ["to_standard_error", "to_triton"]

_ROOT = "unified_backend"


class _TritonHandler(logging.Handler):
    """Hands each line to `pb_utils.Logger`, which exists only between initialize and finalize."""

    def __init__(self, triton_logger: Any) -> None:
        super().__init__()
        self._triton = triton_logger

    def emit(self, record: logging.LogRecord) -> None:
        line = printable(self.format(record))
        if record.levelno >= logging.ERROR:
            self._triton.log_error(line)
        elif record.levelno >= logging.WARNING:
            self._triton.log_warn(line)
        elif record.levelno >= logging.INFO:
            self._triton.log_info(line)
        else:
            self._triton.log_verbose(line)


def to_triton(triton_logger: Any) -> None:
    """Send the backend's lines to Triton's logger (`pb_utils.Logger`)."""
    _install(_TritonHandler(triton_logger), "unified: %(message)s")


def to_standard_error(level: int = logging.INFO) -> None:
    """Send the backend's lines to standard error, which Triton copies into its log."""
    _install(logging.StreamHandler(sys.stderr), "unified: %(levelname)s %(message)s", level)


def _install(handler: logging.Handler, form: str, level: int = logging.INFO) -> None:
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger(_ROOT)
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False
