"""Text in a config or a variable -> the value it stands for; each function raises ValueError with what it must be."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "SWITCH",
    "at_least_one",
    "batch_sizes",
    "choice",
    "count",
    "options",
    "parse_bytes",
    "parse_milliseconds",
    "positive",
    "renamed",
    "separated",
    "sizes",
    "tensor_names",
    "words",
]

SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def parse_bytes(text: str) -> int:
    """A size such as `20GB` (10^9), `512MiB` (2^20) or `1000` bytes.

    Raises:
        ValueError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    if match is None or (match[3] and not match[2]):
        raise ValueError('it must be a size such as "20GB", "512MiB" or a number of bytes')
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2] or " "))


def parse_milliseconds(text: str) -> float:
    """Milliseconds in a time span such as `20ms`, `0.02s` or `500us`.

    Raises:
        ValueError: it is not one, or it is 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)", text.strip().lower())
    if match is None or not float(match[1]):
        raise ValueError('it must be a time with its unit, such as "20ms", "0.02s" or "500us"')
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2]]


@dataclasses.dataclass(frozen=True)
class choice:  # noqa: N801 - a parser, as the functions here
    """A parser of one of a few words.

    Attributes:
        allowed: word, in lower case -> the value it stands for.
    """

    allowed: Mapping[str, Any]

    def __call__(self, text: str) -> Any:
        if text.strip().lower() not in self.allowed:
            raise ValueError(f"it must be one of {', '.join(self.allowed)}")
        return self.allowed[text.strip().lower()]


def count(text: str) -> int:
    """A whole number of 0 or more."""
    if not text.strip().isdecimal():
        raise ValueError("it must be a whole number of 0 or more")
    return int(text)


def at_least_one(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.strip().isdecimal() or not int(text):
        raise ValueError("it must be a whole number of 1 or more")
    return int(text)


def positive(text: str) -> float:
    """A number above 0, such as `1e-3`."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError("it must be a number above 0, such as 1e-3")
    return value


def words(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def separated(text: str) -> tuple[str, ...]:
    """Names between colons or commas."""
    return words(text.replace(":", ","))


def tensor_names(text: str) -> tuple[str, ...]:
    """Tensors between commas."""
    # As tf2onnx has them: the commas inside a shape's brackets separate nothing.
    return tuple(part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip())


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("it must be a JSON object")
    return value


def renamed(text: str) -> tuple[tuple[str, str], ...]:
    """A JSON object of names."""
    pairs = _object(text)
    if not all(isinstance(new, str) and new for new in pairs.values()) or len(set(pairs.values())) < len(pairs):
        raise ValueError("it must map each name in the model to another name, all of them different")
    return tuple(sorted(pairs.items()))


def options(text: str) -> tuple[tuple[str, str], ...]:
    """A JSON object."""
    return tuple(sorted((key, json.dumps(value, sort_keys=True)) for key, value in _object(text).items()))


def batch_sizes(text: str) -> tuple[int, ...] | None:
    """Batch sizes such as `1,4,8`, `auto` or `off`."""
    if text.strip().lower() in ("auto", ""):
        return None
    if text.strip().lower() in ("off", "none", "0", "false"):
        return ()
    try:
        return sizes(text)
    except ValueError:
        raise ValueError('it must be "auto", "off" or batch sizes such as "1,4,8"') from None


def sizes(text: str) -> tuple[int, ...]:
    """Batch sizes such as `1,4,8`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError('it must be batch sizes such as "1,4,8"')
    return tuple(int(part) for part in parts)
