"""One Triton for many tests: models come and go through explicit model control."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers import LIVE, Triton, start_server

_LOG_LINES = 80


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server on an empty repository; add models with `add_model` under names of your own, and load them."""
    repository = tmp_path_factory.mktemp("triton") / "models"
    repository.mkdir()
    with start_server(repository, model_control_mode="explicit") as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Show what the servers of a failed test logged."""
    report = yield
    if report.failed:
        for server in LIVE:
            tail = "\n".join(server.log_text().splitlines()[-_LOG_LINES:])
            report.sections.append((f"Triton log, last {_LOG_LINES} lines of {server.log}", tail))
    return report
