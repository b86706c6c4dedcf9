"""What tests of several packages share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import DEFAULT_MODEL
from model.pull import resolve_model
from tests.redis_server import RedisServer
from tests.tiny_model import tiny_model as make_tiny_model

ROOT = Path(__file__).parents[1]


# Under pytest-xdist several processes share the cores: threads of one would wait for those of another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Let children be interrupted: a shell that runs the tests in the background ignores SIGINT for all."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the end-to-end tests; share the tests out among the processes of pytest-xdist.

    What shares something expensive stays together: the tests of a file, and those of a folder that are
    marked `vllm`, unless they name a group of their own (`xdist_group`). The longest begin.
    """
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.vllm)
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shared = item.path.parent if item.get_closest_marker("vllm") else item.path
            item.add_marker(pytest.mark.xdist_group(str(shared.relative_to(ROOT / "tests"))))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    return next((turn for turn, mark in enumerate(("vllm", "slow")) if item.get_closest_marker(mark)), 2)


@pytest.fixture(scope="session")
def small_model() -> str:
    """Folder of the small real model: `LATENTEVOLVE_TEST_MODEL`, or the default one, made once."""
    given = os.environ.get("LATENTEVOLVE_TEST_MODEL")
    return given or resolve_model(DEFAULT_MODEL, ROOT / ".cache", print)


@pytest.fixture(scope="session")
def tiny_model(small_model: str) -> str:
    """Folder of a model with random weights and the small model's tokenizer: loads and answers at once."""
    return make_tiny_model(small_model, ROOT / ".cache")


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A real redis-server of this test."""
    server = RedisServer(tmp_path)
    server.start()
    yield server.url
    server.stop()
