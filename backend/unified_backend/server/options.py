"""How a Triton server is started: options of ours, turned into its command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unified_backend.server.find import Server

__all__ = ["SERVICES", "ControlMode", "Options", "command_line", "given"]

ControlMode = Literal["none", "poll", "explicit"]

SERVICES = ("http", "grpc", "metrics")


@dataclass(frozen=True)
class Options:
    """How to start a server.

    Attributes:
        host: address that HTTP, gRPC and metrics listen on; Triton's own default is every address.
        http_port, grpc_port, metrics_port: Triton's defaults.
        model_control_mode: `none` loads all models once, `poll` follows the repository, `explicit` loads on request.
        poll_seconds: between two looks in mode `poll`; Triton's default is 15.
        load_models: loaded at start in mode `explicit`; `*` is all.
        arguments: passed to tritonserver as they are; they win over what is passed by default.
        environment: added to the server's environment.
        log: file that takes the server's output; None leaves it on this process's.
    """

    host: str = "0.0.0.0"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    model_control_mode: ControlMode = "none"
    poll_seconds: int | None = None
    load_models: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None

    @property
    def services(self) -> tuple[str, ...]:
        """Those of `http`, `grpc` and `metrics` that are not turned off."""
        return tuple(service for service in SERVICES if self.allows(service))

    def allows(self, service: str) -> bool:
        """Whether `service` (`http`, `grpc` or `metrics`) was left on."""
        value = given(self.arguments, f"--allow-{service}")
        return value is None or value.lower() not in ("false", "0", "off", "no")

    def address(self, service: str) -> str:
        """What `service` listens on."""
        return given(self.arguments, f"--{service}-address") or self.host

    def url(self, service: str) -> str:
        """Where a client on this machine reaches `service`, as `host:port`."""
        host = self.address(service)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"{f'[{host}]' if ':' in host else host}:{self.port(service)}"

    def port(self, service: str) -> int:
        """The port of `service`."""
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}[service]


def command_line(
    server: Server, repositories: Sequence[str], options: Options, backends: Path, shm_prefix: str
) -> list[str]:
    """The tritonserver command: `options.arguments` come last and replace the defaults they name."""
    command = [str(server.executable), *(f"--model-repository={repository}" for repository in repositories)]
    command += [f"--backend-directory={backends}", f"--model-control-mode={options.model_control_mode}"]
    command += [f"--{service}-port={options.port(service)}" for service in SERVICES]
    if options.poll_seconds is not None:
        command.append(f"--repository-poll-secs={options.poll_seconds}")
    command += [f"--load-model={name}" for name in options.load_models]
    # One bad model neither stops the start (exit-on-error) nor makes the server unready for the good ones.
    defaults = {f"--{service}-address": options.host for service in SERVICES}
    defaults |= {"--exit-on-error": "false", "--strict-readiness": "false"}
    if server.caches is not None:
        defaults["--cache-directory"] = str(server.caches)
    command += [f"{flag}={value}" for flag, value in defaults.items() if given(options.arguments, flag) is None]
    # Under `python` it holds for Python-based backends too; under `unified` Triton ignores it.
    if not any("shm-region-prefix-name" in argument for argument in options.arguments):
        command.append(f"--backend-config=python,shm-region-prefix-name={shm_prefix}")
    return [*command, *options.arguments]


def given(arguments: Sequence[str], flag: str) -> str | None:
    """The value that `arguments` give `flag`, as `--flag=value` or `--flag value`; None if they do not name it."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag:
            return arguments[position + 1] if position + 1 < len(arguments) else ""
    return None
