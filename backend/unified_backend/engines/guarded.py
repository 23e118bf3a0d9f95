"""Other people's engines, whose unforeseen errors are turned into those that the ladder knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_backend.engines import Built, Canonical, Engine, Runner, Threads, builds_slowly
from unified_backend.errors import EngineError, UnifiedError
from unified_backend.gpus import Gpu
from unified_backend.settings import Settings
from unified_backend.tensors import Array

__all__ = ["Guarded"]


class Guarded:
    """An engine that raises nothing but this package's errors.

    Attributes:
        inner: the engine as it is.
    """

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name = str(inner.name)
        self.accepts = frozenset(inner.accepts)
        self.builds_slowly = builds_slowly(inner)

    def unusable(self, gpu: Gpu | None) -> str | None:
        """See `Engine.unusable`; an error is a reason."""
        try:
            with _translated(self.name, "unusable"):
                return self.inner.unusable(gpu)
        except EngineError as error:
            return error.why

    def key_fields(self, settings: Settings) -> dict[str, Any]:
        """See `Engine.key_fields`."""
        with _translated(self.name, "key_fields"):
            return self.inner.key_fields(settings)

    def build(self, canonical: Canonical, settings: Settings, folder: Path) -> dict[str, Any]:
        """See `Engine.build`."""
        with _translated(self.name, "build"):
            return self.inner.build(canonical, settings, folder)

    def load(self, canonical: Canonical, built: Built | None, settings: Settings, threads: Threads) -> Runner:
        """See `Engine.load`."""
        with _translated(self.name, "load"):
            return _GuardedRunner(self.name, self.inner.load(canonical, built, settings, threads))


class _GuardedRunner:
    """A runner that raises nothing but this package's errors."""

    def __init__(self, name: str, inner: Runner) -> None:
        self.signature = inner.signature
        self._name, self._inner = name, inner

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], into: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """See `Runner.run`."""
        with _translated(self._name, "run"):
            return self._inner.run(feeds, outputs, into)

    def close(self) -> None:
        """See `Runner.close`."""
        with _translated(self._name, "close"):
            self._inner.close()


@contextmanager
def _translated(name: str, method: str) -> Iterator[None]:
    try:
        yield
    except UnifiedError:
        raise
    except Exception as error:
        why = f"{method} raised {type(error).__name__}: {error}"
        raise EngineError(f"the engine {name} failed", why, "Ask whoever made it, or uninstall its package") from error
