"""Text in a config or a variable -> the value it stands for; each function raises ValueError with what it must be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
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
    """Bytes in a size such as `20GB` (10^9), `512MiB` (2^20) or `1000`.

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


def choice(allowed: Mapping[str, Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if text.strip().lower() not in allowed:
            raise ValueError(f"it must be one of {', '.join(allowed)}")
        return allowed[text.strip().lower()]

    return parse


def count(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError("it must be a whole number of 0 or more")
    return int(text)


def at_least_one(text: str) -> int:
    if not text.strip().isdecimal() or not int(text):
        raise ValueError("it must be a whole number of 1 or more")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError("it must be a number above 0, such as 1e-3")
    return value


def words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def separated(text: str) -> tuple[str, ...]:
    """Names between colons, as Triton's DALI backend has them, or commas."""
    return words(text.replace(":", ","))


def tensor_names(text: str) -> tuple[str, ...]:
    """tf2onnx's list of tensors; the commas inside a shape's brackets separate nothing."""
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
    pairs = _object(text)
    if not all(isinstance(new, str) and new for new in pairs.values()) or len(set(pairs.values())) < len(pairs):
        raise ValueError("it must map each name in the model to another name, all of them different")
    return tuple(sorted(pairs.items()))


def options(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, json.dumps(value, sort_keys=True)) for key, value in _object(text).items()))


def batch_sizes(text: str) -> tuple[int, ...] | None:
    if text.strip().lower() in ("auto", ""):
        return None
    if text.strip().lower() in ("off", "none", "0", "false"):
        return ()
    try:
        return sizes(text)
    except ValueError:
        raise ValueError('it must be "auto", "off" or batch sizes such as "1,4,8"') from None


def sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError('it must be batch sizes such as "1,4,8"')
    return tuple(int(part) for part in parts)
