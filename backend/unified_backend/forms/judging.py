"""Does a model in a lower precision still answer as it did in FP32?"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unified_backend.engines.reference import open_reference
from unified_backend.errors import ConfigError, SourceError, VerificationError
from unified_backend.settings import Settings
from unified_backend.verification import Compared, Sample, require, verify

__all__ = ["COMPUTED_IN", "EIGHT_BITS", "Judge"]

logger = logging.getLogger(__name__)

EIGHT_BITS = ("int8", "fp8")
COMPUTED_IN = {"fp16": "FP16", "bf16": "BF16", "int8": "QDQ", "fp8": "QDQ"}  # as `verify` has it
# Eight bits are steps of 0.4 % of a tensor's range, and a deep net sums many: EfficientNet-Lite0 is off by 0.16 of its
# largest value at one class of a thousand, with a cosine of 0.976 and the same class for every photograph.
_TOLERANCE, _COSINE, _TOP1 = 0.5, 0.95, 0.9
_DO = "Keep what matters in FP32 with the parameter `exclude`, accept more with `tolerance`, or take a higher precision"


@dataclasses.dataclass
class Judge:
    """Compares a model with FP32's answers to samples.

    Attributes:
        rows: of the last comparison.
        accepted: why it failed, where `verify` is warn.
    """

    label: str
    precision: str
    settings: Settings
    samples: Sequence[Sample]
    rows: list[Compared] = dataclasses.field(default_factory=list)
    accepted: str = ""

    def __call__(self, path: Path) -> None:
        """
        Raises:
            ConfigError: ONNX Runtime does not load it.
            VerificationError: it differs by more than the precision may, and `verify` is strict.
        """
        eight, settings = self.precision in EIGHT_BITS, self.settings
        tolerance = settings.tolerance or (_TOLERANCE if eight else None)
        try:
            runner, _ = open_reference(self.label, path, settings)
            self.rows = verify(runner, self.samples, tolerance, computed_in=COMPUTED_IN[self.precision])
            require(self.rows, "FP32", f"the model in {self.precision.upper()}")
            if eight and settings.tolerance is None:
                self._require_classes()
        except SourceError as error:
            what = f"{self.label}: the model cannot be lowered to {self.precision}"
            raise ConfigError(what, error.why, _DO) from None
        except VerificationError as error:
            named = VerificationError(f"{self.label}: {error.what}", error.why, _DO)
            if settings.verify == "strict":
                raise named from None
            self.accepted = error.why
            logger.warning("%s Accepted all the same, because verify is warn.", named)

    def told(self) -> str:
        """How far it is from FP32, in words."""
        if not self.rows:
            return "not compared with FP32: no sample runs"
        worst = max(row.max_rel for row in self.rows)
        mean = float(np.mean([row.mean_rel for row in self.rows]))
        text = f"off by {worst:.1e} of the largest value at most, {mean:.1e} in the mean"
        cosines = [row.cosine for row in self.rows if row.cosine is not None]
        text += f", cosine {min(cosines):.4f}" if cosines else ""
        classes = [row.top1 for row in self.rows if row.top1 is not None]
        text += f", the same class for {sum(classes) / len(classes):.0%}" if classes else ""
        return text + (f"; that fails, and verify is warn: {self.accepted}" if self.accepted else "")

    def _require_classes(self) -> None:
        """
        Raises:
            VerificationError: the answers point elsewhere, or name other classes, than those in FP32.
        """
        for name in dict.fromkeys(row.output for row in self.rows):
            own = [row for row in self.rows if row.output == name]
            cosine = min((row.cosine for row in own if row.cosine is not None), default=1.0)
            agreed = [row.top1 for row in own if row.top1 is not None]
            share = sum(agreed) / len(agreed) if agreed else 1.0
            if cosine < _COSINE or share < _TOP1:
                raise VerificationError(
                    f"the model in {self.precision.upper()} differs from FP32",
                    f"output {name} has a cosine of {cosine:.3f} to FP32's ({_COSINE} is asked for), and the same "
                    f"class for {share:.0%} of the rows ({_TOP1:.0%})",
                    _DO,
                )
