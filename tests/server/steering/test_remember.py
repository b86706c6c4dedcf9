"""Remembering: requests never wait, and what is said to be stored is."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from memory.episode import Episode, StoreUnavailableError
from server.steering.metrics import Metrics
from server.steering.remember import Remember
from tests.server.steering.fakes import ListStore


def episode(number: int) -> Episode:
    return Episode(
        space="s",
        key=np.ones(4, dtype=np.float32) / 2,
        latent=np.zeros((2, 4), dtype=np.float32),
        reward=1.0,
        signals={},
        prompt_token_ids=(number,),
        answer_token_ids=(1,),
        prompt_text=str(number),
        answer_text="1",
    )


class Fates(list[tuple[str, str]]):
    """A listener that keeps what it is told."""

    def __call__(self, settled: Episode, fate: str) -> None:
        self.append((settled.prompt_text, fate))


@pytest.fixture
def store() -> ListStore:
    return ListStore()


@pytest.fixture
def metrics() -> CollectorRegistry:
    return CollectorRegistry()


def counted(metrics: CollectorRegistry, fate: str) -> float | None:
    """Return how many episodes had a fate."""
    return metrics.get_sample_value("latentevolve_episodes_total", {"result": fate})


@pytest.fixture
async def remember(store: ListStore, metrics: CollectorRegistry) -> AsyncIterator[Remember]:
    made = Remember(store, limit=5, batch=3, metrics=Metrics(metrics), first_wait_s=0.01, longest_wait_s=0.02)
    yield made
    store.gate.set()
    await made.close(0.2)


@pytest.fixture
def fates(remember: Remember) -> Fates:
    listener = Fates()
    remember.listen(listener)
    return listener


async def test_episodes_are_written_in_batches_and_in_order(
    remember: Remember, store: ListStore, fates: Fates
) -> None:
    for number in range(5):
        assert remember.submit(episode(number))
    assert store.episodes == []
    assert remember.pending == 5
    remember.start()
    assert await remember.drain()
    assert [kept.prompt_text for kept in store.episodes] == list("01234")
    assert store.writes == 2
    assert fates == [(number, "stored") for number in "01234"]
    assert remember.pending == 0


async def test_stored_is_said_only_after_the_write_returned(
    remember: Remember, store: ListStore, fates: Fates
) -> None:
    store.gate.clear()
    remember.start()
    remember.submit(episode(0))
    await asyncio.sleep(0.05)
    assert fates == []
    assert remember.pending == 1
    store.gate.set()
    assert await remember.drain()
    assert fates == [("0", "stored")]


async def test_who_writes_one_episode_is_told_its_fate_and_not_that_of_others(
    remember: Remember, store: ListStore
) -> None:
    remember.start()
    remember.submit(episode(0))
    assert await remember.write(episode(1), 30) == "stored"
    assert [kept.prompt_text for kept in store.episodes] == ["0", "1"]
    store.gate.clear()
    assert await remember.write(episode(2), 0.01) is None
    for number in range(remember.pending, 5):
        remember.submit(episode(number))
    assert await remember.write(episode(9), 30) == "dropped"
    store.gate.set()
    assert await remember.drain()
    assert "2" in [kept.prompt_text for kept in store.episodes]


async def test_full_queue_drops_and_counts(
    remember: Remember, store: ListStore, fates: Fates, metrics: CollectorRegistry
) -> None:
    taken = [remember.submit(episode(number)) for number in range(7)]
    assert taken == [True] * 5 + [False] * 2
    assert fates == [("5", "dropped"), ("6", "dropped")]
    assert counted(metrics, "dropped") == 2
    remember.start()
    assert await remember.drain()
    assert remember.submit(episode(8))


async def test_store_that_comes_back_gets_everything(
    remember: Remember, store: ListStore, fates: Fates
) -> None:
    store.away = True
    remember.start()
    for number in range(4):
        remember.submit(episode(number))
    assert not await remember.drain(0.1)
    assert fates == []
    store.away = False
    assert await remember.drain()
    assert [kept.prompt_text for kept in store.episodes] == list("0123")


async def test_one_refused_episode_does_not_spoil_its_batch(
    remember: Remember, store: ListStore, fates: Fates, metrics: CollectorRegistry
) -> None:
    episodes = [episode(number) for number in range(3)]
    store.refuse = {episodes[1].id}
    for one in episodes:
        remember.submit(one)
    remember.start()
    assert await remember.drain()
    assert sorted(fates) == [("0", "stored"), ("1", "failed"), ("2", "stored")]
    assert (counted(metrics, "stored"), counted(metrics, "failed")) == (2, 1)


async def test_full_disk_refuses_and_counts_until_there_is_room(
    remember: Remember, store: ListStore, fates: Fates, metrics: CollectorRegistry
) -> None:
    store.full = True
    remember.start()
    for number in range(4):
        remember.submit(episode(number))
    assert await remember.drain()
    assert fates == [(number, "refused") for number in "0123"]
    assert (counted(metrics, "refused"), remember.pending) == (4, 0)
    store.full = False
    remember.submit(episode(4))
    assert await remember.drain()
    assert [kept.prompt_text for kept in store.episodes] == ["4"]


async def test_deleted_episode_is_not_written_afterwards(
    remember: Remember, store: ListStore, fates: Fates, metrics: CollectorRegistry
) -> None:
    waiting = [episode(number) for number in range(5)]
    for one in waiting:
        remember.submit(one)
    assert await remember.delete(waiting[4].id)  # nobody writes yet
    store.gate.clear()
    remember.start()
    await asyncio.sleep(0.02)
    deletion = asyncio.create_task(remember.delete(waiting[0].id))  # which is being written
    await asyncio.sleep(0.02)
    assert not deletion.done()
    store.gate.set()
    assert await deletion
    assert await remember.drain()
    assert [kept.prompt_text for kept in store.episodes] == ["1", "2", "3"]
    assert ("4", "deleted") in fates
    assert counted(metrics, "deleted") == 1
    assert not await remember.delete(waiting[0].id)


async def test_episode_taken_up_while_its_deletion_runs_is_not_written(
    remember: Remember, store: ListStore, fates: Fates
) -> None:
    gone, kept = episode(0), episode(1)
    store.answers.clear()
    deletion = asyncio.create_task(remember.delete(gone.id))
    await asyncio.sleep(0.02)
    remember.submit(gone)
    remember.submit(kept)
    remember.start()
    await asyncio.sleep(0.02)  # the batch waits until the deletion is through
    store.answers.set()
    assert await deletion
    assert await remember.drain()
    assert [one.prompt_text for one in store.episodes] == ["1"]
    assert fates == [("0", "deleted"), ("1", "stored")]


async def test_episode_of_a_batch_that_waits_for_the_store_can_be_deleted(
    remember: Remember, store: ListStore, fates: Fates
) -> None:
    store.full, store.away = False, True
    remember.start()
    waiting = [episode(number) for number in range(3)]
    for one in waiting:
        remember.submit(one)
    await asyncio.sleep(0.03)
    with pytest.raises(StoreUnavailableError):
        await remember.delete(waiting[1].id)
    store.deletes_while_away = True
    assert await remember.delete(waiting[1].id)
    store.away = False
    assert await remember.drain()
    assert [kept.prompt_text for kept in store.episodes] == ["0", "2"]


async def test_end_with_the_store_away_drops_each_episode_once(
    remember: Remember, store: ListStore, fates: Fates
) -> None:
    store.away = True
    remember.start()
    for number in range(4):
        remember.submit(episode(number))
    await asyncio.sleep(0.03)
    await remember.close(0.05)
    assert sorted(fates) == [(number, "dropped") for number in "0123"]
    assert remember.pending == 0


async def test_listener_that_fails_stops_nothing(remember: Remember, store: ListStore) -> None:
    def fail(settled: Episode, fate: str) -> None:
        raise RuntimeError("no")

    after = Fates()
    remember.listen(fail)
    remember.listen(after)
    remember.start()
    remember.submit(episode(0))
    remember.submit(episode(1))
    assert await remember.drain()
    assert len(store.episodes) == len(after) == 2
