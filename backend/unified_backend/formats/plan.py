"""TensorRT plans and TensorRT-RTX plans: engines that somebody has built, known by their header."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description
from unified_backend.settings import Settings

__all__ = ["Header", "Plan", "header_of", "plans"]

_TENSORRT, _RTX = b"ftrt", b"vtrt"
_SIZE, _VERSION, _TARGETS = 16, 24, 32  # offsets of the file's size, four bytes of version, and a mask of targets
_HEADER = 64
# Bit of the mask -> compute capability, as seen in plans that TensorRT-RTX 1.7.1 built for each.
_ARCHITECTURES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
_LAYERS = "layers.json"  # what a build of this package leaves beside the plan


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first bytes of a plan say.

    Attributes:
        version: of TensorRT or TensorRT-RTX that built it; "" where the header does not tell.
        size: of the file, as far as the header tells; 0 if it does not.
        targets: compute capabilities that it was built for (`sm89`); () of TensorRT, whose header does not tell.
    """

    version: str
    size: int
    targets: tuple[str, ...]


class Plan:
    """The plan format of TensorRT, or that of TensorRT-RTX.

    Args:
        name: of the format.
        magic: how files begin.
        builder: who writes them, for messages.
    """

    def __init__(self, name: str, magic: bytes, builder: str) -> None:
        self.name = name
        self._magic = magic
        self._builder = builder

    def detect(self, path: Path) -> bool:
        """Whether the file begins as such plans do."""
        with path.open("rb") as file:
            return file.read(len(self._magic)) == self._magic

    def companions(self, path: Path) -> list[str]:
        """None: a plan is one file."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the header says; inputs and outputs are known to the engine alone, when it is loaded.

        Raises:
            SourceError: the file is cut short.
        """
        header = header_of(path)
        there = path.stat().st_size
        if there < header.size or there < _HEADER:
            raise SourceError(
                f"{label}: {path.name} is cut short",
                f"its header speaks of {header.size or _HEADER} bytes, and it has {there}",
                "Copy it again, completely",
            )
        facts: dict[str, Any] = {"built by": f"{self._builder} {header.version}".rstrip()}
        if header.targets:
            facts["built for"] = list(header.targets)
        return Description((), (), facts={**facts, **_layers(path)})


def plans() -> tuple[Plan, Plan]:
    """Both formats."""
    return Plan("plan", _TENSORRT, "TensorRT"), Plan("plan-rtx", _RTX, "TensorRT-RTX")


def header_of(path: Path) -> Header:
    """What the first bytes of a plan say; NVIDIA gave the place of the version in TensorRT#3073."""
    with path.open("rb") as file:
        head = file.read(_HEADER).ljust(_HEADER, b"\0")
    mask = int.from_bytes(head[_TARGETS : _TARGETS + 4], "little") if head.startswith(_RTX) else 0
    targets = tuple(name for bit, name in enumerate(_ARCHITECTURES) if mask >> bit & 1)
    size = int.from_bytes(head[_SIZE : _SIZE + 8], "little") if head.startswith(_RTX) else 0
    version = head[_VERSION : _VERSION + 4]
    return Header(".".join(map(str, version)) if version[0] else "", size, targets)


def _layers(path: Path) -> dict[str, Any]:
    """What was written beside it when it was built here: its layers, without constants."""
    try:
        layers = json.loads(path.with_name(_LAYERS).read_bytes())
    except (OSError, ValueError):
        return {}
    layers = [layer for layer in layers if layer["type"] != "constant"]
    rows = {layer["name"]: layer["type"] for layer in layers}
    given = Counter(layer["gives"] for layer in layers if layer.get("gives"))
    types = {"types": dict(given.most_common())} if given else {}
    return {"operators": dict(Counter(rows.values()).most_common()), **types, "layers": rows}
