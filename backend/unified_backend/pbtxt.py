"""config.pbtxt: between its text, and the JSON form in which Triton hands configs to backends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format

from unified_backend.errors import ConfigError

__all__ = ["from_pbtxt", "gives_max_batch_size", "read_pbtxt", "to_lines", "to_pbtxt"]


def read_pbtxt(path: Path) -> dict[str, Any]:
    """The config in a file, field names as in model_config.proto; `{}` if there is no file.

    Raises:
        ConfigError: the text is not a model configuration; names line and column.
    """
    if not path.exists():
        return {}
    try:
        return from_pbtxt(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path.parent.name}/{path.name} does not parse", str(error), "Correct it there") from None


def from_pbtxt(text: str) -> dict[str, Any]:
    """The config in a text, field names as in model_config.proto.

    Raises:
        ValueError: the text is not a model configuration; names line and column.
    """
    try:
        message = text_format.Parse(text, _message())
    except text_format.ParseError as error:
        raise ValueError(str(error)) from None
    config: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return config


def gives_max_batch_size(config: Path) -> bool:
    """Whether the user wrote max_batch_size: in the config that Triton hands over, 0 and nothing look the same."""
    try:
        text = config.read_text("utf-8", "replace")
    except OSError:
        return False
    return re.search(r"^[^#\n]*\bmax_batch_size\s*:", text, re.MULTILINE) is not None


def to_pbtxt(config: Mapping[str, Any], one_line: bool = False) -> str:
    """The config as text that can be pasted into config.pbtxt."""
    message = json_format.ParseDict(config, _message())
    return str(text_format.MessageToString(message, as_one_line=one_line, use_short_repeated_primitives=one_line))


def to_lines(config: Mapping[str, Any]) -> list[str]:
    """The config as people write it by hand: one line a field, or one an element of a field that has several."""
    lines = []
    for name, value in config.items():
        many = isinstance(value, Mapping) and name == "parameters"
        for part in [{key: one} for key, one in value.items()] if many else [value]:
            message = json_format.ParseDict({name: part}, _message())
            shown = text_format.MessageToString(message, as_one_line=True, use_short_repeated_primitives=True)
            lines.append(str(shown).strip() or f"{name}: {part}")  # a 0, which protobuf leaves out
    return lines


def _message() -> Any:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.ModelConfig()
