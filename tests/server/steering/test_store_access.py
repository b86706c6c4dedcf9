"""A store that does not answer: what it costs those who ask, and everybody else."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from qdrant_client import QdrantClient

from memory.episode import StoreUnavailableError
from memory.qdrant_store import QdrantStore, connect
from memory.store import EpisodeStore
from server.steering.breaker import Breaker
from server.steering.store_access import FAILURES, PAUSE_S, THREADS, StoreAccess
from tests.server.steering.conftest import MakeDay
from tests.server.steering.fakes import ListStore


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> Iterator[ListStore]:
    """A store that hangs until its `answers` is set."""
    store = ListStore()
    store.answers.clear()
    yield store
    store.answers.set()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        taken: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in taken:
            connection.close()


class Opened(QdrantStore):
    """The store of a server that stopped answering after it was opened."""

    def _prepare(self, client: QdrantClient) -> None:
        pass


async def test_store_that_hangs_is_waited_for_no_longer_than_the_limit_and_then_left_alone(
    store: ListStore,
) -> None:
    clock = Clock()
    access = StoreAccess(store, timeout_s=0.02, breaker=Breaker(failures=2, pause_s=10, clock=clock))
    for asked in (1, 2, 2, 2):
        with pytest.raises(StoreUnavailableError):
            await access.call(lambda store: store.count())
        assert store.asked == asked
    store.answers.set()
    with pytest.raises(StoreUnavailableError, match="next try in 10 s"):
        await access.call(lambda store: store.count())
    clock.now = 11
    assert await access.call(lambda store: store.count(), timeout_s=10) == 0
    assert await access.call(lambda store: store.count(), timeout_s=10) == 0
    access.close()


async def test_store_whose_calls_still_hang_after_the_pause_is_left_alone_for_another(
    store: ListStore,
) -> None:
    clock = Clock()
    access = StoreAccess(store, timeout_s=0.02, breaker=Breaker(failures=THREADS, pause_s=10, clock=clock))
    await asyncio.gather(
        *(access.call(lambda store: store.count()) for _ in range(THREADS)), return_exceptions=True
    )
    clock.now = 11
    for reason in ("no thread", "next try in 10 s"):
        with pytest.raises(StoreUnavailableError, match=reason):
            await access.call(lambda store: store.count())
    assert store.asked == THREADS
    access.close()


async def test_calls_that_found_no_thread_in_time_are_never_made_and_are_no_failure_of_the_store(
    store: ListStore,
) -> None:
    breaker = Breaker(failures=FAILURES, pause_s=PAUSE_S)
    access = StoreAccess(store, timeout_s=0.01, breaker=breaker)
    held = [
        asyncio.create_task(access.call(lambda store: store.count(), timeout_s=60)) for _ in range(THREADS)
    ]
    queued = [asyncio.create_task(access.call(lambda store: store.count())) for _ in range(64 - THREADS)]
    for error in await asyncio.gather(*queued, return_exceptions=True):
        assert isinstance(error, StoreUnavailableError)
    assert not breaker.is_open
    store.answers.set()
    assert await asyncio.gather(*held) == [0] * THREADS
    assert await access.call(lambda store: store.count(), timeout_s=60) == 0
    assert store.asked == THREADS + 1
    access.close()


async def test_calls_that_waited_for_a_thread_for_a_part_of_their_limit_are_no_failure_of_the_store(
    store: ListStore,
) -> None:
    access, late = StoreAccess(store, timeout_s=60), threading.Event()
    held = [asyncio.create_task(access.call(lambda store: store.count())) for _ in range(THREADS)]
    queued = [
        asyncio.create_task(access.call(lambda store: late.wait(), timeout_s=0.2)) for _ in range(FAILURES)
    ]
    await asyncio.sleep(0)
    store.answers.set()
    assert await asyncio.gather(*held) == [0] * THREADS
    for error in await asyncio.gather(*queued, return_exceptions=True):
        assert isinstance(error, StoreUnavailableError)
    late.set()
    assert await access.call(lambda store: store.count()) == 0
    access.close()


async def test_answers_that_came_while_the_loop_was_held_up_are_taken() -> None:
    store, answered = ListStore(), threading.Semaphore(0)
    access = StoreAccess(store, timeout_s=0)

    def count(store: EpisodeStore) -> int:
        found = store.count()
        answered.release()
        return found

    def hold_up() -> None:
        for _ in range(64):
            assert answered.acquire(timeout=30)
        access.close()
        for thread in threading.enumerate():
            if thread.name.startswith("store"):
                thread.join()

    calls = [asyncio.create_task(access.call(count)) for _ in range(64)]
    asyncio.get_running_loop().call_soon(hold_up)
    assert await asyncio.gather(*calls) == [0] * 64


async def test_requests_go_on_without_a_store_that_hangs(make_day: MakeDay, store: ListStore) -> None:
    day = await make_day(store=store, recall_timeout_s=0.02)
    assert (await day.ask())[0].reason == "store-unavailable"
    await day.publish()
    for _ in range(FAILURES + 3):
        outcome, _ = await day.ask()
        assert (outcome.mode, outcome.reason) == ("prior", "store-unavailable")
    assert store.asked == FAILURES
    assert day.count("recalls_total", result="unavailable") == FAILURES + 4


async def test_requests_go_on_without_a_qdrant_server_that_accepts_and_never_answers(
    make_day: MakeDay, silent: int
) -> None:
    space = (await make_day()).engine.space
    store = Opened(
        connect(f"http://127.0.0.1:{silent}"),
        space=space.id,
        length=space.length,
        hidden_size=space.hidden_size,
    )
    day = await make_day(store=store, recall_timeout_s=0.05)
    await day.publish()
    outcomes = await asyncio.gather(*(day.ask() for _ in range(8)))
    assert {(outcome.mode, outcome.reason) for outcome, _ in outcomes} == {("prior", "store-unavailable")}
