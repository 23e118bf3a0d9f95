"""A canonical model with post-processing composed onto its graph: it is the canonical model from there on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_backend.cache import Key
from unified_backend.conversion.normalise import write_model
from unified_backend.engines import Canonical
from unified_backend.formats.onnx import Onnx, read_model
from unified_backend.lookups import Lookup
from unified_backend.stages.expression import Call
from unified_backend.stages.fragments import RECIPE, LookUp, compose, key_fields, read_look_up
from unified_backend.tensors import Signature

__all__ = ["composed", "key_of_composed"]


def composed(canonical: Canonical, fragments: Sequence[Call], lookup: Lookup) -> tuple[Canonical, Mapping[str, LookUp]]:
    """The model with the fragments behind its outputs, and the outputs that are looked up in what it gives.

    Raises:
        ConfigError: a fragment does not fit the model.
    """

    def make(folder: Path) -> dict[str, Any]:
        made = compose(read_model(canonical.path), canonical.signature, fragments, canonical.label)
        data = [canonical.path.parent / name for name in Onnx().companions(canonical.path)]
        write_model(made.model, canonical.path, data, folder)
        return {
            "signature": made.signature.to_json(),
            "labels": {name: rule.to_json() for name, rule in made.labels.items()},
        }

    key = key_of_composed(canonical.digest, fragments)
    entry = lookup(key, make)
    signature = Signature.from_json(entry.facts["signature"])
    model = dataclasses.replace(
        canonical, path=entry.path / "model.onnx", digest=key.digest, signature=signature, inner={}
    )
    return model, {name: read_look_up(rule, fragments, canonical.label) for name, rule in entry.facts["labels"].items()}


def key_of_composed(canonical: str, fragments: Sequence[Call]) -> Key:
    """Of the model with the fragments: every byte of the files that the graph is made of, and not where these lie.

    Args:
        canonical: digest of the canonical model's key.
    """
    return Key(
        "composed",
        {
            "canonical": canonical,
            "fragments": key_fields(fragments),
            "recipe": RECIPE,
        },
    )
