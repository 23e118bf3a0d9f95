"""What a conversion is to make, and how far off that may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from unified_backend.errors import Refused
from unified_backend.verification import Sample

__all__ = ["FORMATS", "WEIGHT_BITS", "Form"]

FORMATS = ("onnx", "mnn", "openvino")
WEIGHT_BITS = (8, 4)
# Errors of PP-OCR's networks on seeded inputs, relative to the largest value: 7e-3 and less with float16 weights, 0.04
# to 0.2 with 8 bits, 0.2 to 0.4 with 4. A wrong layout or operator is off by all of it.
_FP16 = (2e-2, "weights are rounded to the 11 bits of float16")
_QUANTISED = {
    8: (1e-1, "weights are rounded to 255 steps a channel"),
    4: (5e-1, "weights are rounded to 15 steps a channel"),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """What to make.

    Attributes:
        to: one of `FORMATS`.
        fp16: keep weights as float16.
        weight_bits: 8 or 4: keep weights as integers of so many bits.
    """

    to: str = "onnx"
    fp16: bool = False
    weight_bits: int | None = None

    def require_possible(self) -> None:
        """
        Raises:
            Refused: the format is unknown, or has not got what is asked for.
        """
        if self.to not in FORMATS:
            raise Refused(f'--to is "{self.to}"', "there is no such format", f"Choose of {', '.join(FORMATS)}")
        if self.fp16 and self.to == "onnx":
            raise Refused("--fp16 has no effect on ONNX", "weights stay as they are", "Leave it out, or choose --to")
        if self.weight_bits is not None and (self.to != "mnn" or self.weight_bits not in WEIGHT_BITS or self.fp16):
            raise Refused(
                f"--weight-bits {self.weight_bits} cannot be done",
                "MNN's converter alone does it, to 8 or 4 bits, and without --fp16",
                "Write --to mnn --weight-bits 8",
            )

    def tolerance(self, samples: Sequence[Sample]) -> tuple[float | None, str]:
        """The largest error accepted, None for that of each output's type, and why."""
        if self.weight_bits is not None:
            return _QUANTISED[self.weight_bits]
        if self.fp16:
            return _FP16
        if any(array.dtype == np.float16 for sample in samples for array in sample.expected.values()):
            return _FP16[0], "the model itself computes with the 11 bits of float16"
        return None, "kernels sum in different orders"
