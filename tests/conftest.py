"""What all tests share: no installation behind their backs, and real object stores."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from object_stores import Gate, ObjectStore, object_store

# A model that no engine takes is not worth an installation; the tests of conversions set it otherwise.
os.environ["TRITON_UNIFIED_TOOLCHAINS"] = "off"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sends the package's lines elsewhere: only until the test ends."""
    logger = logging.getLogger("unified_backend")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    """An S3 server for many tests: use buckets of your own, and leave it running."""
    with object_store() as store:
        yield store


@pytest.fixture
def own_s3() -> Iterator[ObjectStore]:
    """An S3 server that the test may stop."""
    with object_store() as store:
        yield store


@pytest.fixture
def gate(s3: ObjectStore) -> Iterator[Gate]:
    """A relay before the S3 server."""
    relay = Gate(s3.port)
    yield relay
    relay.close()
