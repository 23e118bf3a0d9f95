"""`triton-unified serve`: a Triton server with this backend, in the foreground."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from typer.core import TyperCommand

from unified_backend.errors import Refused, ServerError
from unified_backend.server.find import find_server
from unified_backend.server.options import ControlMode, Options
from unified_backend.server.preflight import is_remote, model_folders
from unified_backend.server.run import LoadedModel, RunningServer, start

__all__ = ["app"]

# What serve needs to know itself, and how to say it.
_OURS = {
    "--model-repository": "name repositories before the `--`",
    "--model-store": "name repositories before the `--`",
    "--http-port": "write --http-port before the `--`",
    "--grpc-port": "write --grpc-port before the `--`",
    "--metrics-port": "write --metrics-port before the `--`",
    "--model-control-mode": "write --model-control-mode before the `--`",
    "--repository-poll-secs": "write --poll before the `--`",
    "--load-model": "write --load-model before the `--`",
    "--backend-directory": "put the backend there with `triton-unified install` and start that tritonserver yourself",
}
_PASSED = "unified_backend.serve.arguments"
# `timeout` and some supervisors signal a process and then its whole group: the same wish, heard twice.
_ECHO_SECONDS = 1.0
_INSIST_SECONDS = 2.0
_LOADING_SECONDS = 10.0


class _ServeCommand(TyperCommand):
    """Keeps what follows `--` from being taken for more repositories."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Set aside what follows the first `--`, for tritonserver."""
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta[_PASSED] = tuple(args[cut + 1 :])
        return super().parse_args(ctx, args[:cut])


app = typer.Typer(add_completion=False)


@app.command(cls=_ServeCommand)
def serve(
    context: typer.Context,
    repositories: Annotated[
        list[str],
        typer.Argument(metavar="REPOSITORY", help="Model repository: a directory, or s3://, gs://, as://."),
    ],
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on; Triton's default is every address.")] = "0.0.0.0",
    model_control_mode: Annotated[
        ControlMode | None, typer.Option(help="Load all models once, follow the repository, or load on request.")
    ] = None,
    poll: Annotated[
        int | None, typer.Option(metavar="SECONDS", min=1, help="Look for changed models this often (mode poll).")
    ] = None,
    load_model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Load at start (mode explicit); repeatable; `*` is all.")
    ] = None,
    server: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The tritonserver to use; found by itself if not given.")
    ] = None,
) -> None:
    """Start a Triton server that serves every model in REPOSITORY, and stay until it ends.

    It is the tritonserver on PATH, else that in /opt/tritonserver, else that in
    the pytriton wheel. What follows `--` goes to it as it is.

    A model that fails to load stops neither the start nor the other models.

    Examples:

    triton-unified serve models

    triton-unified serve models --poll 5 -- --log-verbose=1
    """
    arguments: tuple[str, ...] = context.meta[_PASSED]
    for argument in arguments:
        if (flag := argument.partition("=")[0]) in _OURS:
            raise Refused(f"{flag} cannot follow `--`", "serve sets it itself", _OURS[flag].capitalize())
    options = Options(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        model_control_mode=_control_mode(model_control_mode, poll, load_model),
        poll_seconds=poll,
        load_models=tuple(load_model or ()),
        arguments=arguments,
    )
    stopping = _Stopping()
    with start(find_server(server), repositories, options) as running:
        stopping.forward_to(running)
        threading.Thread(target=_report, args=(running, stopping), daemon=True).start()
        code = running.wait()
    raise typer.Exit(128 - code if code < 0 else code)


class _Stopping:
    """Forwards SIGINT and SIGTERM to the server; a second one, for who cannot wait, ends it at once.

    While models load Triton has no handler, and about one SIGINT in ten gets lost: it is followed by a SIGTERM.
    """

    def __init__(self) -> None:
        self.loading = True
        self._running: RunningServer | None = None
        self._first: float | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def forward_to(self, running: RunningServer) -> None:
        self._running = running

    def _received(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._running is None:
            raise typer.Exit(128 + number)
        if self._first is None:
            self._first = now
            self._running.signal(number)
            insist = threading.Timer(_INSIST_SECONDS, self._insist)
            insist.daemon = True
            insist.start()
        elif now - self._first > _ECHO_SECONDS:
            self._running.kill()

    def _insist(self) -> None:
        if self.loading and self._running is not None and self._running.running():
            self._running.signal(signal.SIGTERM)


def _report(running: RunningServer, stopping: _Stopping) -> None:
    """Say once that the server is ready, where, and which models are not."""
    options = running.options
    if not options.allows("http"):
        stopping.loading = False
        return  # without HTTP nobody here can ask it; Triton's log says when gRPC listens
    began = time.monotonic()
    while not running.ready(_LOADING_SECONDS):
        if not running.running():
            return
        # Triton answers nothing before every model has loaded or failed; a first build can take minutes.
        typer.echo(f"loading: seconds={time.monotonic() - began:.0f}")
    stopping.loading = False
    try:
        models = running.models()
    except ServerError as error:
        typer.echo(f"ready, but {error}", err=True)
        return
    urls = [f"http://{options.url('http')}"]
    if options.allows("grpc"):
        urls.append(f"grpc://{options.url('grpc')}")
    if options.allows("metrics"):
        urls.append(f"http://{options.url('metrics')}/metrics")
    ready = {model.name for model in models if model.state == "READY"}
    failed = _failed(running, models)
    counts = f"models_ready={len(ready)} models_failed={len({model.name for model in failed})}"
    typer.secho(f"ready: {' '.join(urls)} {counts} listening={options.host}", fg="green")
    for model in failed:
        typer.secho(f"failed: model={model.name} version={model.version} reason={model.why}", fg="red")


def _failed(running: RunningServer, models: list[LoadedModel]) -> list[LoadedModel]:
    """Those that should have loaded and did not, also where Triton itself tells only its log."""
    failed = [model for model in models if model.state == "UNAVAILABLE" and model.reason not in ("", "unloaded")]
    options = running.options
    if options.model_control_mode == "explicit" and "*" not in options.load_models:
        wanted = set(options.load_models)
    else:
        wanted = {model.name for model in models}
        for repository in running.repositories:
            if not is_remote(repository):
                wanted |= {folder.name for folder in model_folders(Path(repository))}
    # A configuration that Triton refuses has no state in its index; a model without a version is not even in it.
    silent = wanted - {model.name for model in models if model.state}
    reason = (
        "Triton refused its configuration, or found no such model or no version of it; "
        "`triton-unified check` on its folder says why, and so does the line of its log that names it"
    )
    return failed + [LoadedModel(name, "-", "", reason) for name in sorted(silent)]


def _control_mode(mode: ControlMode | None, poll: int | None, load_model: list[str] | None) -> ControlMode:
    """The mode asked for, or the one that the other options imply."""
    implied: dict[ControlMode, str] = {}
    if poll is not None:
        implied["poll"] = "--poll"
    if load_model:
        implied["explicit"] = "--load-model"
    if mode is not None:
        implied.setdefault(mode, "--model-control-mode")
    if len(implied) > 1:
        raise Refused(
            f"{' and '.join(implied.values())} contradict each other",
            f"they ask for model control modes {' and '.join(implied)}",
            "Keep one of them",
        )
    return next(iter(implied), "none")
