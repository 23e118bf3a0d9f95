"""The lines of config.pbtxt that set what was found, and a config.pbtxt that they are merged into."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified_backend.errors import Refused
from unified_backend.pbtxt import from_pbtxt, read_pbtxt, to_lines, to_pbtxt

__all__ = ["Merged", "changed_fields", "config_lines", "merged", "write_merged"]

_OPENING, _CLOSING = "{[<", "}]>"
_NAME = re.compile(r"[A-Za-z_]\w*")
_STRING = re.compile(r"""("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')""")


@dataclass(frozen=True)
class Merged:
    """A config.pbtxt with fields set.

    Attributes:
        lost: comments of the old text that are not in the new one.
    """

    text: str
    lost: Sequence[str] = ()


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that another one has otherwise; of `parameters` those that differ."""
    found = {name: value for name, value in new.items() if name != "parameters" and old.get(name) != value}
    before = old.get("parameters") or {}
    parameters = {name: value for name, value in (new.get("parameters") or {}).items() if before.get(name) != value}
    return found | ({"parameters": parameters} if parameters else {})


def config_lines(fields: Mapping[str, Any]) -> list[str]:
    """Fields as lines to paste, one a field, or one an element where there are several."""
    return to_lines(fields)


def merged(text: str, fields: Mapping[str, Any]) -> Merged:
    """The text with the fields set, all else in it and its comments kept.

    Only comments inside what is replaced are lost.

    Raises:
        Refused: what comes out is not what was meant; never seen, and never to be written.
    """
    edited = _edited(text, fields)
    if from_pbtxt(edited) != _with(from_pbtxt(text), fields):
        raise Refused("config.pbtxt was not changed", "its form is not understood", "Paste the lines yourself")
    after = _comments(edited)
    return Merged(edited, [comment for comment in _comments(text) if comment not in after])


def write_merged(path: Path, fields: Mapping[str, Any]) -> str:
    """Set fields in a config.pbtxt, which is replaced at once or not at all.

    Returns:
        what was done, in words.

    Raises:
        Refused: it cannot be written.
    """
    read_pbtxt(path)  # refuses what does not parse, with line and column
    try:
        old = path.read_text("utf-8") if path.exists() else ""
        found = merged(old, fields)
        if found.lost:
            path.with_name(f"{path.name}.bak").write_text(old, "utf-8")
        aside = path.with_name(f".{path.name}.new")
        aside.write_text(found.text, "utf-8")
        aside.replace(path)
    except OSError as error:
        raise Refused(f"{path} cannot be written", os.strerror(error.errno or 0), "Paste the lines yourself") from None
    if not old:
        return f"wrote {path}"
    if not found.lost:
        return f"set in {path}; all else in it is as it was"
    count = len(found.lost)
    return f"set in {path}; {count} comment{'s' * (count > 1)} could not be kept, the file as it was is {path.name}.bak"


def _with(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config with fields set, in the form that a text is read in."""
    parameters = {**(config.get("parameters") or {}), **(fields.get("parameters") or {})}
    result = {**config, **fields} | ({"parameters": parameters} if parameters else {})
    return from_pbtxt(to_pbtxt(result))


def _edited(text: str, fields: Mapping[str, Any]) -> str:
    """The text with the old places of the fields taken out, and the new lines where the first of each was, or at the
    end."""
    waiting = {name: "\n".join(to_lines({name: value})) for name, value in fields.items()}
    pieces, position = [], 0
    for name, start, end in _spans(text):
        if name not in fields:
            continue
        before = text[position:start]
        rest = _other_parameters(text[start:end], fields["parameters"]) if name == "parameters" else ""
        if rest is None:  # none of them is set anew
            continue
        replacement = "\n".join(filter(None, (waiting.pop(name, ""), rest)))
        position = end
        if not replacement:  # no empty line is left behind
            before = before.rstrip(" \t")
            position += len(text[end:]) - len(text[end:].lstrip(" \t"))
            position += text[position : position + 1] == "\n" and (not before or before.endswith("\n"))
        pieces += [before, replacement]
    result = "".join((*pieces, text[position:]))
    left = "\n".join(filter(None, waiting.values()))
    return result + ("\n" if left and result and not result.endswith("\n") else "") + (f"{left}\n" if left else "")


def _other_parameters(span: str, ours: Mapping[str, Any]) -> str | None:
    """What a place of `parameters` holds beside those that are set anew, as lines; None if it holds none of these."""
    there = from_pbtxt(span).get("parameters") or {}
    if not there.keys() & ours.keys():
        return None
    rest = {name: value for name, value in there.items() if name not in ours}
    return "\n".join(to_lines({"parameters": rest})) if rest else ""


def _spans(text: str) -> Iterator[tuple[str, int, int]]:
    """Where each top-level field of a text begins and ends."""
    position = 0
    while True:
        position = _past_space(text, position, ",;")
        name = _NAME.match(text, position)
        if name is None:
            return
        end = _past_value(text, _past_space(text, name.end(), ":"))
        yield name[0], position, end
        position = end


def _past_space(text: str, position: int, others: str = "") -> int:
    while position < len(text) and (text[position].isspace() or text[position] in "#" + others):
        position = _line_end(text, position) if text[position] == "#" else position + 1
    return position


def _past_value(text: str, position: int) -> int:
    """The end of a message, a list or a scalar; strings that follow each other are one."""
    if text[position : position + 1] in tuple(_OPENING):
        depth = 0
        while position < len(text):
            letter = text[position]
            if letter == "#":
                position = _line_end(text, position)
                continue
            if string := _STRING.match(text, position):
                position = string.end()
                continue
            depth += (letter in _OPENING) - (letter in _CLOSING)
            position += 1
            if not depth:
                break
        return position
    end = start = position
    while string := _STRING.match(text, position):
        end = string.end()
        position = _past_space(text, end)
    if end != start:
        return end
    while position < len(text) and not text[position].isspace() and text[position] not in ",;#":
        position += 1
    return position


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _comments(text: str) -> list[str]:
    """The comments of a text."""
    without = _STRING.sub(lambda match: '"' * len(match[0]) if "#" in match[0] else match[0], text)
    return [text[match.start() : match.end()].rstrip() for match in re.finditer(r"#[^\n]*", without)]
