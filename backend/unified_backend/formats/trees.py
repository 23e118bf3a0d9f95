"""Trees of LightGBM and XGBoost in these libraries' own files, which hold no code."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, renamed
from unified_backend.formats.wire import mapped
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["LightGbm", "XgBoost"]

_HEAD = 4096  # bytes that tell a file of trees
_MOST_HEADER = 64 * 2**20  # bytes; LightGBM lists the names of all features before the trees
_PARAMETERS = 256 * 1024  # bytes at the end of XGBoost's files that hold what follows the trees
_MOST_FEATURES = 10_000_000
INPUT = "input"


class XgBoost:
    """The XGBoost format: one file in JSON or in UBJSON."""

    name = "xgboost"

    def detect(self, path: Path) -> bool:
        """Whether the file is an object in JSON or UBJSON that begins with a learner.

        Raises:
            SourceError: it begins as one and ends too early.
        """
        with path.open("rb") as file:
            head = file.read(_HEAD)
        text = re.match(rb'\s*\{\s*"(learner|version)"\s*:', head)
        binary = re.match(rb"\{L.{8}(learner|version)", head, re.DOTALL)
        if not (text or binary) or b"gradient_booster" not in head:
            return False
        tail = _tail(path)
        if b"learner_model_param" not in tail or not tail.rstrip().endswith(b"}"):
            raise SourceError(
                f"{path.name} is a truncated XGBoost model",
                "it ends before its parameters",
                "Copy it again, completely",
            )
        return True

    def companions(self, path: Path) -> list[str]:
        """None."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """Its number of features, and what it was trained for.

        Raises:
            SourceError: it is damaged.
            ConfigError: the parameter `names` names what the model has not got.
        """
        tail = _tail(path)
        after = tail[tail.rindex(b"learner_model_param") :]
        objective = after[max(0, after.find(b"objective")) :]
        facts = {
            "objective": _string(objective, "name"),
            "classes": _string(after, "num_class"),
            "base score": _string(after, "base_score"),
        }
        return _described(path, _string(after, "num_feature"), facts, settings, label)


class LightGbm:
    """The LightGBM format: one text file."""

    name = "lightgbm"

    def detect(self, path: Path) -> bool:
        """Whether the file begins as LightGBM's text does.

        Raises:
            SourceError: it does, and ends too early.
        """
        with path.open("rb") as file:
            if not re.match(rb"tree\r?\nversion=", file.read(_HEAD)):
                return False
        with mapped(path) as data:
            if data.rfind(b"\nend of trees") < 0:
                raise SourceError(
                    f"{path.name} is a truncated LightGBM model",
                    "it ends inside its trees",
                    "Copy it again, completely",
                )
        return True

    def companions(self, path: Path) -> list[str]:
        """None."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """Its number of features, and what it was trained for.

        Raises:
            SourceError: it is damaged.
            ConfigError: the parameter `names` names what the model has not got.
        """
        with path.open("rb") as file:
            header = file.read(_MOST_HEADER).partition(b"\nTree=")[0].decode("utf-8", "replace")
        values = dict(line.partition("=")[::2] for line in header.splitlines() if "=" in line)
        last = values.get("max_feature_idx", "")
        facts = {
            "objective": values.get("objective"),
            "classes": values.get("num_class"),
            "trees": len(values.get("tree_sizes", "").split()),
        }
        return _described(path, str(int(last) + 1) if last.isdecimal() else None, facts, settings, label)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _PARAMETERS))
        return file.read()


def _described(
    path: Path, features: str | None, facts: Mapping[str, object], settings: Settings, label: str
) -> Description:
    if features is None or not features.isdecimal() or not 0 < int(features) <= _MOST_FEATURES:
        raise SourceError(
            f"{path.name} is damaged", f"its number of features is {features or 'missing'}", "Copy it again, completely"
        )
    spec = TensorSpec(INPUT, "FP32", (None, int(features)))
    return renamed(Description((spec,), (), facts={"features": int(features), **facts}), settings.names, label)


def _string(data: bytes, key: str) -> str | None:
    """The first string under a key, in JSON or UBJSON; what is no text of a few characters is none."""
    name = key.encode()
    if found := re.search(rb'"' + name + rb'"\s*:\s*"([^"]{0,256})"', data):
        return found[1].decode("ascii", "replace")
    if found := re.search(name + rb"SL(.{8})", data, re.DOTALL):
        (length,) = struct.unpack(">Q", found[1])
        text = data[found.end() : found.end() + min(length, 256)]
        return text.decode("ascii", "replace")
    return None
