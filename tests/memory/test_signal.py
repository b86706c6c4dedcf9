"""The swap signal over a real redis-server."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from memory.signal import announce, listen
from memory.tenants import partition
from tests.redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def listening(url: str, space: str, on_change: Callable[[str | None], None]) -> AsyncIterator[None]:
    task = asyncio.create_task(listen(url, space, on_change))
    yield
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Calls:
    """Counts calls, and waits for the next one."""

    def __init__(self, error: Exception | None = None) -> None:
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._error = error

    def __call__(self, part: str | None) -> None:
        self._queue.put_nowait(part)
        if self._error is not None:
            raise self._error

    async def one(self) -> str | None:
        return await asyncio.wait_for(self._queue.get(), 20)

    def more(self) -> int:
        return self._queue.qsize()


async def test_an_announcement_reaches_the_listeners_of_its_space(server: RedisServer) -> None:
    here, elsewhere = Calls(), Calls()
    async with listening(server.url, "space-a", here), listening(server.url, "space-b", elsewhere):
        # The first call of each says that it listens.
        assert await here.one() is None
        assert await elsewhere.one() is None
        for part in ("space-a", partition("space-a", "shop"), "space-a"):
            assert await asyncio.to_thread(announce, server.url, part)
            assert await here.one() == part
        await asyncio.to_thread(announce, server.url, "space-abc")
    assert (here.more(), elsewhere.more()) == (0, 0)


async def test_a_listener_outlives_the_server(server: RedisServer) -> None:
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
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(RuntimeError("cannot swap"))
    async with listening(server.url, "space-a", calls):
        await calls.one()
        assert await asyncio.to_thread(announce, server.url, "space-a")
        await calls.one()
    assert "was not taken up" in caplog.text


async def test_without_a_server_there_are_only_log_records(
    server: RedisServer, caplog: pytest.LogCaptureFixture
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
