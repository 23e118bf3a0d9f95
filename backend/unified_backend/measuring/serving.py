"""A real Triton for as long as a measurement takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from unified_backend.errors import MeasurementError
from unified_backend.server.find import find_server
from unified_backend.server.options import Options
from unified_backend.server.preflight import free_ports, model_folders
from unified_backend.server.run import RunningServer, start

__all__ = ["NotLoadedError", "serving"]

_READY_SECONDS = 600
_FOLLOWS = "has no loaded version"  # of an ensemble, whose model's own reason says more


class NotLoadedError(MeasurementError):
    """Models of a repository do not load.

    Attributes:
        reasons: model -> why not.
    """

    def __init__(self, repository: Path, reasons: Mapping[str, str]) -> None:
        self.reasons = {name: why for name, why in reasons.items() if _FOLLOWS not in why} or dict(reasons)
        super().__init__(
            f"{repository}: not every model was loaded",
            "; ".join(f"{name}: {why}" for name, why in self.reasons.items()),
            "`triton-unified check` says more of each",
        )


@contextmanager
def serving(
    repository: Path, folder: Path, own_cache: bool = True, ready_seconds: float = _READY_SECONDS
) -> Iterator[RunningServer]:
    """One server with every model of the repository loaded; it lives as long as the block.

    Args:
        folder: for its log, and its cache.
        own_cache: an empty one, so that what an earlier run measured has no say; else this host's, as `serve` uses it.
        ready_seconds: that the loads may take.

    Raises:
        NotLoadedError: a model does not load.
        MeasurementError: the server does not start.
    """
    http, grpc, metrics = free_ports(3)
    log = folder / "server.log"
    options = Options(
        host="127.0.0.1",
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
        model_control_mode="explicit",
        load_models=("*",),
        environment={"TRITON_UNIFIED_CACHE": str(folder / "cache")} if own_cache else {},
        log=log,
    )
    with start(find_server(), [repository], options) as server:
        if not server.ready(timeout=ready_seconds):
            ended = f"it had {ready_seconds:.0f} s" if server.running() else "it ended"
            why = f"{ended}; {_tail(log) or 'its log is empty'}"
            raise MeasurementError(f"{repository}: the server did not get ready", why, "Read the end of its log")
        models = server.models()
        failed = {model.name: model.why for model in models if model.state != "READY"}
        # A configuration that Triton refuses is not in its index at all.
        silent = {path.name for path in model_folders(repository)} - {model.name for model in models}
        failed |= {name: _line_of(log, name) for name in sorted(silent)}
        if failed:
            raise NotLoadedError(repository, failed)
        yield server


def _line_of(log: Path, name: str) -> str:
    """The last of the log's errors that names a model."""
    lines = [line for line in _tail(log).splitlines() if line.startswith("E") and name in line]
    return lines[-1].partition("] ")[2].strip('"') if lines else "Triton refused its configuration"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""
