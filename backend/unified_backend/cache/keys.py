"""What an entry is known by: a digest over everything that its bytes depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["SCHEMA", "Key"]

# Of entries on disk and in a remote tier: raised when their layout or the meaning of a key field changes.
SCHEMA = 3


@dataclasses.dataclass(frozen=True)
class Key:
    """Everything an entry's bytes depend on; never a path, a time or a host's name.

    Attributes:
        kind: what the entry is (`canonical`, `batching`, `engine`, `plan`): letters, digits, `-` and `_`.
        fields: JSON values; their order does not matter.
    """

    kind: str
    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of kind, fields and schema version, in hex."""
        text = json.dumps(
            {"schema": SCHEMA, "kind": self.kind, "fields": dict(self.fields)},
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )
        return hashlib.sha256(text.encode()).hexdigest()
