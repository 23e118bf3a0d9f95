"""The tritonserver command line that our options become."""

from __future__ import annotations

from pathlib import Path

import pytest
from unified_backend.server.find import find_server
from unified_backend.server.options import Options, command_line


def arguments(options: Options) -> list[str]:
    return command_line(find_server(), ["/models"], options, Path("/backends"), "prefix")[1:]


@pytest.mark.parametrize("flag", ["--exit-on-error", "--strict-readiness"])
@pytest.mark.parametrize("form", [["{}=true"], ["{}", "true"]])
def test_users_own_flag_replaces_the_default(flag: str, form: list[str]) -> None:
    given = tuple(part.format(flag) for part in form)
    assert f"{flag}=false" in arguments(Options())
    assert f"{flag}=false" not in arguments(Options(arguments=given))
    assert arguments(Options(arguments=given))[-len(given) :] == list(given)


def test_every_service_listens_where_it_was_told() -> None:
    options = Options(host="127.0.0.1", http_port=1, grpc_port=2, metrics_port=3)
    made = arguments(options)
    assert {"--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"} <= set(made)
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3"} <= set(made)


def test_own_address_for_one_service() -> None:
    options = Options(host="0.0.0.0", arguments=("--metrics-address=127.0.0.1",))
    assert "--metrics-address=0.0.0.0" not in arguments(options)
    assert options.address("metrics") == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000"), ("10.1.2.3", "10.1.2.3:8000")]
)
def test_clients_here_reach_a_server_that_listens_everywhere(host: str, url: str) -> None:
    assert Options(host=host).url("http") == url


def test_service_turned_off_has_no_port_to_check() -> None:
    assert Options(arguments=("--allow-grpc=false",)).services == ("http", "metrics")


def test_control_mode_and_models_reach_the_server() -> None:
    made = arguments(Options(model_control_mode="explicit", load_models=("a", "b")))
    assert {"--model-control-mode=explicit", "--load-model=a", "--load-model=b"} <= set(made)
    assert "--repository-poll-secs=5" in arguments(Options(model_control_mode="poll", poll_seconds=5))


def test_own_shared_memory_prefix_is_kept() -> None:
    mine = ("--backend-config=python,shm-region-prefix-name=mine",)
    assert sum("shm-region-prefix-name" in argument for argument in arguments(Options(arguments=mine))) == 1
