"""Keras models in HDF5: `.h5` and `.hdf5` of Keras 1, 2 and 3, with their layers and weights in one file."""

from __future__ import annotations

import mmap
from pathlib import Path

from unified_backend.errors import SourceError
from unified_backend.formats.description import Description
from unified_backend.formats.hdf5 import MAGIC, read_hdf5
from unified_backend.formats.keras_config import describe_config, parse_config
from unified_backend.formats.wire import mapped
from unified_backend.settings import Settings

__all__ = ["KerasHdf5"]

_LAYERS = b"model_config"  # the attribute that a whole model has and weights alone have not; HDF5 packs no names


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
            raise SourceError(
                f"{path.name} holds weights and no model",
                "its attribute model_config, which describes the layers, is missing or longer than any model's",
                "Save the whole model with model.save(...), not save_weights(...)",
            )
        config = parse_config(attributes["model_config"], path.name)
        described = describe_config(config, attributes.get("keras_version") or "", read, settings, label)
        backend = attributes.get("backend")
        return Description(
            described.inputs,
            described.outputs,
            described.inner,
            described.job,
            {"backend": backend, **described.facts},
            described.notes,
        )
