"""scikit-learn's models as skops writes them: a zip of a schema in JSON and of arrays, in which types are named."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, renamed
from unified_backend.formats.excerpts import excerpt
from unified_backend.formats.zip_file import DAMAGE, directory_size, trap
from unified_backend.settings import Settings
from unified_backend.tensors import TensorSpec

__all__ = ["Skops"]

_SCHEMA = "schema.json"
_MOST_DIRECTORY, _MOST_SCHEMA = 16 * 2**20, 256 * 2**20  # bytes; a forest has an array for each tree
_FEATURES = "n_features_in_"
# What a schema may name: loader -> modules of the types. skops.io calls them as it loads the file, or makes them anew.
_VALUES = re.compile(r"builtins")
_NUMBERS = re.compile(r"numpy(\.\w+)*")
_OURS = re.compile(r"sklearn(\.\w+)*")
_LOADERS = {
    **dict.fromkeys(("DictNode", "ListNode", "TupleNode", "SetNode", "JsonNode", "SliceNode", "BytesNode"), _VALUES),
    **dict.fromkeys(
        ("NdArrayNode", "MaskedArrayNode", "DTypeNode", "RandomStateNode", "RandomGeneratorNode"), _NUMBERS
    ),
    **dict.fromkeys(("ObjectNode", "TreeNode", "LossNode"), _OURS),
    "DefaultDictNode": re.compile(r"collections"),
    "SparseMatrixNode": re.compile(r"scipy\.sparse(\.\w+)*"),
    # Types and functions by name: of these skops itself tells in the toolchain which ones it knows.
    "TypeNode": re.compile(r"builtins|numpy(\.\w+)*|sklearn(\.\w+)*"),
    "FunctionNode": re.compile(r"numpy(\.\w+)*|sklearn(\.\w+)*|scipy\.special(\.\w+)*"),
    "CachedNode": re.compile(r".*"),  # what stands elsewhere in the schema
}
_HARMLESS = {"dict", "list", "tuple", "set", "str", "int", "float", "bool", "NoneType", "slice", "bytes", "bytearray"}


class Skops:
    """The format of scikit-learn's models without pickles: one zip file."""

    name = "sklearn"

    def detect(self, path: Path) -> bool:
        """Whether the file is a zip with a schema of skops."""
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
            size = directory_size(file)
            if size is None or size > _MOST_DIRECTORY:
                return False
            try:
                with zipfile.ZipFile(file) as archive:
                    return _SCHEMA in archive.namelist()
            except DAMAGE:
                return False

    def companions(self, path: Path) -> list[str]:
        """None."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """Its estimators, and the number of features of the first.

        Raises:
            SourceError: it is damaged, or names types that are not scikit-learn's or NumPy's.
            ConfigError: the parameter `names` names what the model has not got.
        """
        schema = _schema(path)
        try:
            nodes = list(_nodes(schema))
            if found := next((reason for node in nodes if (reason := _foreign(node))), None):
                raise SourceError(
                    f"{path.name} holds what is not scikit-learn's",
                    found,
                    "Do not load it; a step of your own is to be written with scikit-learn's, or exported by skl2onnx",
                )
            features = next((value for node in nodes if (value := _features(node)) is not None), None)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        if features is None or not 0 < features < 10_000_000:
            raise SourceError(
                f"{path.name} does not tell its number of features",
                "no estimator in it was fitted",
                "Fit it before it is saved",
            )
        named = [f"{node['__module__']}.{node['__class__']}" for node in nodes if node["__loader__"] == "ObjectNode"]
        version = schema.get("_skops_version")
        facts = {"features": features, "estimators": list(dict.fromkeys(named)), "skops": version}
        spec = TensorSpec("input", "FP32", (None, features))
        return renamed(Description((spec,), (), facts=facts), settings.names, label)


def _schema(path: Path) -> Mapping[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if reason := trap(archive.infolist(), path.stat().st_size, _MOST_SCHEMA):
                raise SourceError(f"{path.name} is no archive to unpack", reason, "Save the model again")
            return dict(json.loads(archive.read(_SCHEMA)))
    except (*DAMAGE, RecursionError) as error:
        raise _damaged(path, excerpt(error)) from None


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(f"{path.name} is a damaged skops file", why, "Copy it again, completely, or save it again")


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every node of a schema, outer ones first."""
    waiting = [value]
    for each in waiting:
        if isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, dict):
            if "__loader__" in each:
                yield each
            waiting.extend(each.values())


def _foreign(node: Mapping[str, Any]) -> str | None:
    """Why a node is refused; None if it may be loaded."""
    loader, module, name = str(node["__loader__"]), str(node.get("__module__")), str(node.get("__class__"))
    allowed = _LOADERS.get(loader)
    if allowed is None or not allowed.fullmatch(module) or (module == "builtins" and name not in _HARMLESS):
        return f"it names {excerpt(f'{module}.{name}')} ({excerpt(loader)})"
    return None


def _features(node: Mapping[str, Any]) -> int | None:
    """The number of features that a node's estimator was fitted to."""
    content = node.get("content")
    attributes = content.get("content") if isinstance(content, dict) else None
    value = attributes.get(_FEATURES) if isinstance(attributes, dict) else None
    text = value.get("content") if isinstance(value, dict) else None
    return int(text) if isinstance(text, str) and text.isdecimal() else None
