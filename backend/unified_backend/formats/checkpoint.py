"""TensorFlow 1 checkpoints: the graph in `.meta`, its weights in `.index` and `.data-*` beside it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, telling
from unified_backend.formats.graphdef import describe_graph
from unified_backend.formats.tensorflow_files import kind_of
from unified_backend.formats.tensorflow_messages import read_message
from unified_backend.settings import Settings

__all__ = ["META", "Checkpoint", "graph_of", "newest"]

META = ".meta"
_STATE = "checkpoint"  # tf.train.Saver's note of which step is the newest
_NEWEST = re.compile(r'^\s*model_checkpoint_path\s*:\s*"([^"\n]*)"', re.MULTILINE)
_SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$")
_BESIDE = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")
_MOST_STATE = 2**20  # bytes


class Checkpoint:
    """The checkpoint format: a MetaGraphDef; its name without `.meta` is the prefix of the others, and may be empty."""

    name = "checkpoint"

    def detect(self, path: Path) -> bool:
        """Whether the file's fields are those of a MetaGraphDef with a graph.

        Raises:
            SourceError: it begins as one and ends too early.
        """
        kind = kind_of(path)
        return kind is not None and kind.message == "MetaGraphDef"

    def companions(self, path: Path) -> list[str]:
        """The index and every shard of the data, and the graph in text that estimators leave beside them.

        Those that are missing are named too, for whoever looks for them.

        Raises:
            SourceError: the file is not called after the others, so that they cannot be found.
        """
        prefix = _prefix(path)
        shards = sorted(file.name for file in path.parent.iterdir() if _shard_of(file.name, prefix))
        count = int(shards[0].rpartition("-of-")[2]) if shards else 1
        wanted = [f"{prefix}.data-{number:05}-of-{count:05}" for number in range(min(count, len(shards) + 1))]
        text = ["graph.pbtxt"] if (path.parent / "graph.pbtxt").is_file() else []
        return [f"{prefix}.index", *dict.fromkeys((*wanted, *shards)), *text]

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What goes in and what comes out, found in the graph or named by the settings.

        Raises:
            SourceError: the message is damaged, or its ends are not to be found.
            ConfigError: a parameter names what the model has not got.
        """
        kind = kind_of(path)
        message = read_message(path, "MetaGraphDef", kind is not None and kind.text, "MetaGraphDef")
        info = message.meta_info_def
        facts = {
            "prefix": _prefix(path),
            "tensorflow": info.tensorflow_version,
            "tags": sorted(info.tags),
            "saver": message.saver_def.restore_op_name,
            "collections": sorted(message.collection_def),
        }
        with telling(facts):
            described = describe_graph(message.graph_def, settings, label, frozen=False)
        return Description(
            described.inputs,
            described.outputs,
            described.inner,
            {**described.job, "prefix": _prefix(path)},
            {**facts, **described.facts},
            described.notes,
        )


def graph_of(path: Path) -> Path:
    """The graph of the checkpoint that a user calls by its prefix or by another of its files; else the path itself."""
    prefix = _BESIDE.sub("", path.name) if path.is_file() else path.name
    graph = path.parent / f"{prefix}{META}"
    return graph if graph.is_file() and (prefix != path.name or not path.exists()) else path


def newest(paths: Sequence[Path]) -> list[Path]:
    """Of several steps saved in one folder, the one that the file `checkpoint` calls the newest; else all of them.

    That file names a path on the machine that trained: only its last part counts.
    """
    folders = {path.parent for path in paths}
    if len(paths) < 2 or len(folders) != 1:
        return list(paths)
    with contextlib.suppress(OSError):
        with (folders.pop() / _STATE).open("rb") as file:
            state = file.read(_MOST_STATE).decode("utf-8", "replace")
        if match := _NEWEST.search(state):
            name = re.split(r"[/\\]", match[1])[-1] + META
            return [path for path in paths if path.name == name] or list(paths)
    return list(paths)


def _prefix(path: Path) -> str:
    if not path.name.endswith(META):
        raise SourceError(
            f"{path.name} is a checkpoint's graph under another name",
            "its weights are in files called after it, and it must end in .meta for them to be found",
            "Name it as it was: PREFIX.meta beside PREFIX.index and PREFIX.data-00000-of-00001",
        )
    return path.name[: -len(META)]


def _shard_of(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}.data-") and _SHARD.fullmatch(name[len(prefix) :]) is not None
