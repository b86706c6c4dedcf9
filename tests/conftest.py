"""What tests of several packages share."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from config.settings import DEFAULT_MODEL
from memory.database import sqlite_url
from memory.state import State
from model.pull import resolve_model
from tests.postgres_server import PostgresServer, postgres_programs
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[1]

MEMORY = "/dev/shm"
"""A file system that forgets, as tests may."""

SHARING = {"tests/e2e", "tests/server/engine"}
"""Folders whose tests share an engine."""
ALONE = {"test_real_model.py"}
"""Files in them that start one of their own."""
LONG = {
    "memory/test_store_crash.py",
    "model/test_transformers_engine.py",
    "server/test_nights.py",
    "worker/test_night.py",
}
"""Files that take longest of the quick ones: one that came last would be waited for alone."""


# Under pytest-xdist several processes share the cores: threads of one would wait for those of another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# Whatever the shell says: else each process of the tests, and each that it starts, compiles all sources.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tests write and sync much that is soon deleted: where memory is plenty, they need not wait for the disk.
if os.access(MEMORY, os.W_OK):
    room = os.statvfs(MEMORY)
    if room.f_bavail * room.f_frsize >= 8 << 30 and not room.f_flag & os.ST_NOEXEC:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)


# The same examples everywhere, however slow the machine; nothing is written into the sources' folder.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tests")


def pytest_configure() -> None:
    """Let children be ended: a shell that runs the tests in the background ignores SIGINT for all, and nohup
    SIGHUP."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the end-to-end tests; let the processes of pytest-xdist begin with the longest."""
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.vllm)
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together, in one process of pytest-xdist, what shares an engine: the tests of a file or a folder.

    Its own `xdist_group` does nothing with pytest 9.2, where the id of a test can no longer be changed.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder, _, name = file.rpartition("/")
            return folder if folder in SHARING and name not in ALONE else file

    return Together(config, log)


def _turn(item: pytest.Item) -> int:
    for turn, mark in enumerate(("vllm", "slow")):
        if item.get_closest_marker(mark):
            return turn
    return 2 if item.path.relative_to(ROOT / "tests").as_posix() in LONG else 3


@pytest.fixture(scope="session")
def small_model() -> str:
    """Folder of the small real model: `LATENTEVOLVE_TEST_MODEL`, or the default one, made once."""
    given = os.environ.get("LATENTEVOLVE_TEST_MODEL")
    return given or resolve_model(DEFAULT_MODEL, ROOT / ".cache", print)


@pytest.fixture(scope="session")
def tiny_model(small_model: str) -> str:
    """Folder of a model with random weights and the small model's tokenizer: loads and answers at once."""
    from tests.tiny_model import tiny_model  # and with it transformers, which some processes do without

    return tiny_model(small_model, ROOT / ".cache")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """The state in the test's folder."""
    with State.in_folder(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL server."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = PostgresServer(programs)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "state.db").render_as_string()
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A real redis-server of this test."""
    server = RedisServer(tmp_path)
    server.start()
    yield server.url
    server.stop()
