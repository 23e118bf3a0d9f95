"""A model quantised as far as it holds: the layers that cost most stay in FP32, as few of them as do."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unified_backend.errors import VerificationError

__all__ = ["Written", "literal", "without_the_worst"]

logger = logging.getLogger(__name__)

MOST_KEPT = 0.34  # of the layers; a model that needs more of them in FP32 is not worth quantising

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Written:
    """A quantised model.

    Attributes:
        layers: how many are quantised.
        kept: those that are not, with the reason.
    """

    layers: int
    kept: Mapping[str, str]


def without_the_worst(
    label: str,
    write: Callable[[Sequence[str]], Written],
    judge: Callable[[], None],
    alone: Callable[[Written], Sequence[Row]] | None,
) -> Written:
    """The model that was written last, which holds.

    Args:
        write: writes the model, with the layers in FP32 that these patterns name.
        judge: compares what was written with FP32.
        alone: each layer that was quantised, alone: `layer` and `cosine`, the worst first; None where none can be
            chosen.

    Raises:
        VerificationError: it answers otherwise than in FP32, even with its worst layers in that.
    """

    def tried(rows: Sequence[Row]) -> tuple[Written, VerificationError | None]:
        kept = {row["layer"]: f"alone it costs cosine {1 - row['cosine']:.1e}" for row in rows}
        written = write([literal(name) for name in kept])
        written = dataclasses.replace(written, kept={name: kept.get(name, why) for name, why in written.kept.items()})
        try:
            judge()
        except VerificationError as error:
            logger.info('quantised model=%s kept_in_fp32=%d holds=no reason="%s"', label, len(kept), error.why)
            return written, error
        return written, None

    written, error = tried([])
    if error is None:
        return written
    rows = alone(written) if alone else []
    counts = [2**power for power in range(len(rows).bit_length()) if 2**power <= MOST_KEPT * len(rows)]
    if len(counts) > 1 and (failed := tried(rows[: counts[-1]])[1]):
        raise _refused(failed, rows, counts[-1])  # now, and not after all the smaller counts
    for count in counts:
        written, error = tried(rows[:count])
        if error is None:
            return written
    raise _refused(error, rows, counts[-1] if counts else 0)


def literal(name: str) -> str:
    """A pattern that matches the name alone."""
    return "".join(f"[{one}]" if one in "*?[" else one for one in name)


def _refused(error: VerificationError, rows: Sequence[Row], kept: int) -> VerificationError:
    """The error of a model that does not hold, which names its worst layers."""
    worst = ", ".join(f"{row['layer']} ({1 - row['cosine']:.1e})" for row in rows[:3])
    why = error.why + (f", its {kept} worst layers in FP32" if kept else "")
    why += f"; the layers that cost most cosine are {worst}" if worst else ""
    do = "Give more calibration data, another `calibration_method`, layers to `exclude`, or a `tolerance`"
    return VerificationError(error.what, why, do)
