"""`triton-unified cache explain`: what a model's keys are made of now, and why an entry would be built again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from unified_backend.amounts import amount
from unified_backend.cache.catalogue import SHORT, maker_of
from unified_backend.cache.explaining import ABSENT, Difference
from unified_backend.cache.manifest import Manifest
from unified_backend.cli.opened import opened, translated
from unified_backend.cli.shown import AsJson, ago, print_json
from unified_backend.errors import one_line
from unified_backend.explaining import Explained, Explanation, explain_model
from unified_backend.formats import Source
from unified_backend.repository import our_config, version_folder

__all__ = ["explain"]

_WORDS = {
    "cached": "cached: a load takes it from this disk",
    "remote": "in the remote cache: a load pulls it",
    "damaged": "damaged: a load sets it aside and builds again",
    "removed": "not cached: a load builds it",
    "missing": "not cached: a load builds it",
    "unknown": "not known",
}
_COLOURS = {"cached": "green", "remote": "green", "unknown": "yellow"}
_FILE = re.compile(r"files\[(\d+)\]")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def explain(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A model's directory in a repository.")],
    version: Annotated[
        int | None, typer.Option(metavar="N", help="The version to explain; the highest if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a load of a model would find in the cache now, and where not: what differs from the closest entry.

    Nothing is built. Exits with 0 whatever is found, 1 if the model cannot be read, 2 if there is none.

    Example:

    triton-unified cache explain models/detector.unified
    """
    cache = opened()
    model_dir = model_dir.absolute()
    label, folder = version_folder(model_dir, version)
    with translated(cache):
        explanation = explain_model(label, folder, our_config(label, model_dir), cache)
    if as_json:
        print_json({"model": label, "entries": [_json(entry) for entry in explanation.entries]})
        return
    for line, colour in _lines(label, explanation):
        typer.secho(one_line(line), fg=colour)


def _lines(label: str, explanation: Explanation) -> Iterator[tuple[str, str | None]]:
    source = explanation.source
    names = ", ".join(f"{path.name} ({amount(path.stat().st_size)})" for path in source.files)
    yield f"{label}: {source.format}, {names}", None
    for entry in explanation.entries:
        key = f" {entry.key.digest[:SHORT]}" if entry.key else ""
        reason = f" ({entry.reason})" if entry.reason else ""
        yield f"{entry.name}{key}: {_WORDS[entry.state]}{reason}", _COLOURS.get(entry.state, "red")
        if entry.state == "missing":
            yield f"  closest: {_closest(entry.closest)}", None
            for difference in entry.differences:
                yield f"  differs: {_difference(difference, source, entry)}", None
        for name, value in sorted(entry.key.fields.items()) if entry.key else ():
            yield f"    {name}: {value if isinstance(value, str) else json.dumps(value)}", "bright_black"


def _closest(manifest: Manifest | None) -> str:
    if manifest is None:
        return "there is no entry of this kind"
    made = manifest.made.get("unix_time")
    when = f", made {ago(made)} ago" if isinstance(made, (int, float)) else ""
    return f"{manifest.key.digest[:SHORT]} of {maker_of(manifest) or 'an unnamed model'}{when}"


def _difference(difference: Difference, source: Source, entry: Explained) -> str:
    """One field, old value and new, in words."""
    old, new = _value(difference.old), _value(difference.new)
    if (found := _FILE.fullmatch(difference.field)) and entry.name == "canonical":
        return _file(int(found[1]), difference, source, entry)
    if difference.field == "canonical":
        return f"canonical: it was made of another canonical model, {old} -> {new}; see above what differs there"
    if isinstance(difference.old, str) and isinstance(difference.new, str) and "," in difference.old + difference.new:
        before, after = difference.old.split(","), difference.new.split(",")
        gone, come = [x for x in before if x not in after], [x for x in after if x not in before]
        changes = [f"{', '.join(part)} {verb}" for part, verb in ((gone, "gone"), (come, "new")) if part]
        return f"{difference.field}: {'; '.join(changes) or 'another order'}"
    return f"{difference.field}: {old} -> {new}"


def _file(position: int, difference: Difference, source: Source, entry: Explained) -> str:
    """A file of the model; the entry knows digests, today's names and sizes are the source's."""
    there = len(entry.closest.key.fields["files"]) if entry.closest else 0
    if difference.new is ABSENT:
        return f"file {position + 1} of {there} is gone ({_value(difference.old)})"
    path = source.files[position]
    what = f"file {position + 1} of {len(source.files)}, {path.name}, {amount(path.stat().st_size)}"
    if difference.old is ABSENT:
        return f"{what}, is new"
    return f"{what}, has other bytes: SHA-256 {_value(difference.old)} -> {_value(difference.new)}"


def _value(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    if isinstance(value, str):
        return value[:SHORT] if _DIGEST.fullmatch(value) else value
    return json.dumps(value)


def _json(entry: Explained) -> dict[str, Any]:
    near = entry.closest
    return {
        "name": entry.name,
        "state": entry.state,
        "reason": entry.reason or None,
        "key": entry.key.digest if entry.key else None,
        "fields": dict(entry.key.fields) if entry.key else None,
        "closest": near and {"key": near.key.digest, "fields": dict(near.key.fields), "made": dict(near.made)},
        "differences": [
            {
                "field": difference.field,
                "old": None if difference.old is ABSENT else difference.old,
                "new": None if difference.new is ABSENT else difference.new,
            }
            for difference in entry.differences
        ],
    }
