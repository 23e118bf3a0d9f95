"""Keras models in HDF5: `.h5` and `.hdf5` of Keras 1, 2 and 3, with their layers and weights in one file."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description, telling
from unified_backend.formats.hdf5 import MAGIC, read_hdf5
from unified_backend.formats.keras_config import describe_config, parse_config
from unified_backend.formats.wire import mapped
from unified_backend.settings import Settings

__all__ = ["KerasHdf5", "is_hdf5"]

_LAYERS = b"model_config"  # the attribute that a whole model has and weights alone have not; HDF5 packs no names
_KERAS_3 = re.compile(r"(?:layers/)?(.+?)/vars/\d+$")  # weights alone bear no version


class KerasHdf5:
    """The HDF5 format of Keras: one file."""

    name = "keras-hdf5"

    def detect(self, path: Path) -> bool:
        """Whether the file is HDF5 and says `model_config`; who reads it through HDF5 finds out the rest."""
        with mapped(path) as data:
            return isinstance(data, mmap.mmap) and data[: len(MAGIC)] == MAGIC and data.find(_LAYERS) >= 0

    def companions(self, path: Path) -> list[str]:
        """None."""
        return []

    def describe(self, path: Path, settings: Settings, label: str) -> Description:
        """What the file's attributes say.

        Raises:
            SourceError: it is damaged, holds weights alone, carries code that the settings do not allow, or needs code
                that is not in it.
            ConfigError: a parameter names what the model has not got.
        """
        read = read_hdf5(path)
        attributes = read["attributes"]
        if not attributes.get("model_config"):
            _refuse_weights(read, label)
        config = parse_config(attributes["model_config"], path.name)
        facts = {"backend": attributes.get("backend")}
        with telling(facts):
            described = describe_config(config, attributes.get("keras_version") or "", read, settings, label)
        return Description(
            described.inputs,
            described.outputs,
            described.inner,
            described.job,
            {**facts, **described.facts},
            described.notes,
        )


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, of a Keras model or not."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _refuse_weights(read: Mapping[str, Any], label: str) -> NoReturn:
    """Say what a file without a model's layers holds.

    Raises:
        SourceError: with the weights' names and shapes, where Keras saved them.
    """
    attributes, weights = read["attributes"], read["weights"]
    newer = [match[1] for name in weights if (match := _KERAS_3.match(name))]
    ours = bool(newer or attributes.keys() & {"keras_version", "layer_names"})
    error = SourceError(
        f"{label}: it holds {'weights' if ours else 'data'} and no model",
        "its attribute model_config, which describes the layers, is missing or longer than any model's",
        "Save the whole model with model.save(...), not save_weights(...)",
    )
    if ours:
        layers = newer or [name.split("/")[0] for name in weights]
        error.facts = {
            "keras": attributes.get("keras_version") or ("3" if newer else None),
            "backend": attributes.get("backend"),
            "layers": list(dict.fromkeys(layers)),
            "parameters": read["parameters"],
            "weights": weights,
        }
    raise error
