"""A real Triton for as long as a measurement takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unified_backend.errors import MeasurementError
from unified_backend.server.find import find_server
from unified_backend.server.options import Options
from unified_backend.server.preflight import free_ports
from unified_backend.server.run import RunningServer, start

__all__ = ["serving"]

_READY_SECONDS = 600


@contextmanager
def serving(repository: Path, folder: Path) -> Iterator[RunningServer]:
    """One server with every model of the repository loaded; it lives as long as the block.

    Args:
        folder: for its cache, which is its own and empty (what an earlier run measured has no say here), and its log.

    Raises:
        MeasurementError: a model does not load.
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
        environment={"TRITON_UNIFIED_CACHE": str(folder / "cache")},
        log=log,
    )
    with start(find_server(), [repository], options) as server:
        if not server.ready(timeout=_READY_SECONDS):
            raise MeasurementError(
                f"{repository}: the server did not get ready", _tail(log), "See the end of its log above"
            )
        if failed := [model for model in server.models() if model.state != "READY"]:
            reasons = "; ".join(f"{model.name}: {model.reason}" for model in failed)
            raise MeasurementError(
                f"{repository}: not every model was loaded", reasons, "`triton-unified check` says more of each"
            )
        yield server


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""
