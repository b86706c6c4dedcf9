"""What tests of several packages share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import DEFAULT_MODEL
from model.pull import resolve_model
from tests.redis_server import RedisServer


def pytest_configure() -> None:
    """Let children be interrupted: a shell that runs the tests in the background ignores SIGINT for all."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def small_model() -> str:
    """Folder of the small real model: `LATENTEVOLVE_TEST_MODEL`, or the default one, made once."""
    given = os.environ.get("LATENTEVOLVE_TEST_MODEL")
    return given or resolve_model(DEFAULT_MODEL, Path(".cache"), print)


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A real redis-server of this test."""
    server = RedisServer(tmp_path)
    server.start()
    yield server.url
    server.stop()
