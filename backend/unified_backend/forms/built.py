"""An engine of a form: taken from the cache, or built and compared with the engine that the form was judged by."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unified_backend import hosts
from unified_backend.cache import Key
from unified_backend.engines import Built, Canonical, Engine, Runner, Threads
from unified_backend.errors import CacheFullError, UnifiedError
from unified_backend.formats.onnx import coarsest_float
from unified_backend.forms.judging import COMPUTED_IN, EIGHT_BITS
from unified_backend.forms.profiled import samples_within
from unified_backend.forms.reference import PROFILED, Reference
from unified_backend.lookups import Lookup
from unified_backend.model_keys import AHEAD, engine_key, verification_key
from unified_backend.samples import FixedDims
from unified_backend.settings import Settings
from unified_backend.verification import require, samples_of, verify

__all__ = ["AHEAD", "Builder"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Builder:
    """Makes the engines of one form.

    Attributes:
        fixed: dimensions that the config fixes.
    """

    canonical: Canonical
    settings: Settings
    fixed: FixedDims
    reference: Reference
    lookup: Lookup

    def at_hand(self, engine: Engine) -> bool:
        """Whether the engine is in the cache."""
        return self.lookup.at_hand(self._key(engine)) is not None

    def made(self, engine: Engine) -> Built:
        """The engine, built now or before.

        Raises:
            CacheFullError: no disk has room for it.
            EngineError: it cannot be built.
            VerificationError: it computes something else than the model.
        """
        entry = self.lookup(self._key(engine), partial(self._build, engine))
        return Built(entry.path, entry.facts)

    def built(self, engine: Engine) -> Built | None:
        """As `made`; None where no disk has room for it: then it is made in memory."""
        try:
            return self.made(engine)
        except CacheFullError as error:
            label = self.canonical.label
            logger.warning('engine not kept model=%s reason="%s" next="built again at every load"', label, error.why)
            return None

    def prove(self, engine: Engine, runner: Runner) -> None:
        """Verify an engine that was built ahead, once for each kind of GPU; close its runner if it fails.

        Raises:
            VerificationError: it computes something else than the model.
        """
        # Nothing is built here, which is all that `require_cached` forbids.
        settings = dataclasses.replace(self.settings, require_cached=False)
        key = verification_key(self._key(engine).digest, self.canonical.judged_by, settings)
        try:
            dataclasses.replace(self.lookup, settings=settings)(key, lambda _: self._verified(runner, engine.name))
        except UnifiedError:
            runner.close()
            raise

    def _key(self, engine: Engine) -> Key:
        return engine_key(self.canonical.digest, engine, self.settings)

    def _build(self, engine: Engine, folder: Path) -> Mapping[str, Any]:
        facts = engine.build(self.canonical, self.settings, folder)
        if engine.name == self.canonical.judged_by:
            return facts
        runner = engine.load(self.canonical, Built(folder, facts), self.settings, Threads(hosts.cores()))
        try:
            return {**facts, **self._verified(runner, engine.name)}
        finally:
            runner.close()

    def _computed_in(self) -> str:
        """The coarsest type that the engine computes in; TF32 has the 10 bits of mantissa of FP16."""
        if self.canonical.precision in EIGHT_BITS:
            return COMPUTED_IN[self.canonical.precision]
        coarsest = coarsest_float(self.canonical.path) if self.canonical.format == "onnx" else "FP32"
        return "FP16" if coarsest == "FP32" and self.settings.gpu and self.settings.tf32 else coarsest

    def _verified(self, runner: Runner, name: str) -> dict[str, Any]:
        """Facts of a comparison with the engine that the form was judged by."""
        if name in PROFILED and self.settings.profiles:
            samples = samples_within(self.settings, self.canonical, self.fixed, self.reference)
        else:
            samples = samples_of(self.reference.runner(self.canonical), self.fixed)
        rows = verify(runner, samples, self.settings.tolerance, computed_in=self._computed_in())
        if self.settings.verify == "strict":
            require(rows, self.canonical.judged_by, name)
        return {"reference": self.canonical.judged_by, "verified": [row.to_json() for row in rows]}
