"""A source that is not ONNX: what it says of itself, and what serving it depends on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from unified_backend.engines import Runner
from unified_backend.errors import VerificationError
from unified_backend.formats import Source
from unified_backend.formats.description import Description
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.tensors import Signature
from unified_backend.verification import (
    Compared,
    Sample,
    require,
    require_alive,
    require_steady,
    samples_of,
    verify,
)

__all__ = ["Foreign"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A source that is not ONNX.

    Attributes:
        description: what it says of itself, as the settings choose from it.
        fixed: dimensions that the config fixes.
        digests: SHA-256 of the bytes of each of the source's files, in hex.
        samples: the user's sample files, each with the digest of its bytes.
    """

    source: Source
    description: Description
    settings: Settings
    fixed: FixedDims
    digests: tuple[str, ...]
    samples: tuple[tuple[Path, str], ...] = ()

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, as the description has them."""
        return Signature(self.description.inputs, self.description.outputs)

    def verified(self, runner: Runner, samples: Sequence[Sample], what: str, judge: str) -> list[Compared]:
        """How far a runner's answers are from those expected, by output.

        Args:
            what: is judged, for messages.
            judge: gave the answers that are expected.

        Raises:
            VerificationError: they differ by more than is accepted, or from run to run, and `verify` is strict.
        """
        rows: list[Compared] = []
        try:
            rows = verify(runner, samples, self.settings.tolerance)
            require(rows, judge, what)
            own = samples or samples_of(runner, self.fixed, [path for path, _ in self.samples])
            for sample in own[:1]:
                require_steady(runner, sample, self.settings.tolerance)
            if not samples:
                require_alive(runner, own)
        except VerificationError as error:
            named = VerificationError(f"{self.source.label}: {error.what}", error.why, error.do)
            if self.settings.verify == "strict":
                raise named from None
            if self.settings.verify == "warn":
                logger.warning("%s Accepted all the same, because verify is warn.", named)
        return rows
