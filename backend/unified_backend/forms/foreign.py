"""A source that is not ONNX: what it says of itself, and what serving it depends on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from unified_backend.cache import FileMemo
from unified_backend.engines import Runner
from unified_backend.errors import ConfigError, SourceError, VerificationError
from unified_backend.formats import FORMATS, Source
from unified_backend.formats.description import Description
from unified_backend.forms.stated import stated
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.stages.around import Around
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

__all__ = ["Foreign", "foreign", "samples_in"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A source that is not ONNX.

    Attributes:
        description: what it says of itself, as the settings choose from it.
        fixed: dimensions that the config fixes.
        digests: SHA-256 of the bytes of each of the source's files, in hex.
        samples: the user's sample files, each with the digest of its bytes.
        as_onnx: its graph is changed (fragments, a precision), and must be ONNX then.
    """

    source: Source
    description: Description
    settings: Settings
    fixed: FixedDims
    digests: tuple[str, ...]
    samples: tuple[tuple[Path, str], ...] = ()
    as_onnx: bool = False

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


def foreign(source: Source, samples: Path | None, settings: Settings, around: Around, memo: FileMemo) -> Foreign:
    """A source that is not ONNX, described by its format.

    Args:
        around: what the config says of the model, and the stages around it.
        samples: folder of the user's samples, `.npz` files with arrays under the inputs' names; it need not be there.

    Raises:
        SourceError: it cannot be read, or does not say what goes in and what comes out.
        ConfigError: a parameter names what the model has not got.
    """
    if settings.split_along_outer_axis and not around.nothing:
        raise ConfigError(
            f'{source.label}: parameter "split_along_outer_axis" is set, and the model has stages around it',
            "a stage has one row for each sample",
            "Put the stages into models of their own, and all of them into an ensemble or a pipeline",
        )
    try:
        description = FORMATS[source.format].describe(source.path, settings, source.label)
    except SourceError as error:
        if error.what.startswith(f"{source.label}: "):
            raise
        # What reads a file knows the file's name only.
        raise SourceError(f"{source.label}: {error.what}", error.why, error.do) from None
    found = samples_in(samples, memo) if samples else ()
    description = stated(description, settings, around.engine_config(), [path for path, _ in found], source.label)
    fixed = around.fixed(Signature(description.inputs, description.outputs))
    as_onnx = bool(around.fragments) or (settings.lowers and settings.precision != "auto")
    return Foreign(source, description, settings, fixed, tuple(map(memo.digest, source.files)), found, as_onnx)


def samples_in(folder: Path, memo: FileMemo) -> tuple[tuple[Path, str], ...]:
    """The user's samples, each with the digest of its bytes: the `.npz` files of a folder, which need not be there."""
    return tuple((path, memo.digest(path)) for path in sorted(folder.glob("*.npz")))
