"""Bytes as people read them."""

from __future__ import annotations

__all__ = ["amount"]


def amount(size: float) -> str:
    """Bytes in a unit of 1000: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
