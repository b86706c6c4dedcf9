"""When memory is looked after: often enough, not more, and again after an error."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import cast

import pytest

from memory.episode import StoreUnavailableError, now
from memory.store import EVERYWHERE, EpisodeStore, Outline, Where
from server import upkeep as module
from server.upkeep import COMPACT_EVERY_S, EXPIRE_EVERY_S, Upkeep


class Store:
    """As much of a store as upkeep asks; notes how often it is read and compacted."""

    def __init__(self, days: Sequence[float]) -> None:
        self.days = {f"id-{number}": age for number, age in enumerate(days)}
        self.reads = self.compactions = self.counts = 0
        self.away = False

    def count(self, *, tenant: str | None = None) -> int:
        self.counts += 1
        if self.away:
            raise StoreUnavailableError("away")
        return len(self.days)

    def outlines(self, where: Where = EVERYWHERE) -> Iterator[Outline]:
        self.reads += 1
        for name, age in self.days.items():
            seen = now() - timedelta(days=age)
            yield Outline(name, 0.5, False, 1, seen, seen)

    def delete(self, episode_ids: Sequence[str]) -> int:
        return sum(self.days.pop(name, None) is not None for name in episode_ids)

    def compact(self) -> bool:
        self.compactions += 1
        return False


class Clock:
    """Seconds as a test says."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def of(store: Store, clock: Clock, max_days: float | None, max_episodes: int | None) -> Upkeep:
    return Upkeep(cast(EpisodeStore, store), max_days=max_days, max_episodes=max_episodes, monotonic=clock)


def test_age_is_looked_at_once_an_hour_and_files_once_a_day() -> None:
    store, clock = Store([1, 40]), Clock()
    upkeep = of(store, clock, 30, None)
    for _ in range(int(2 * COMPACT_EVERY_S / 60)):
        upkeep.look()
        clock.seconds += 60
    assert store.reads == 2 * COMPACT_EVERY_S / EXPIRE_EVERY_S
    assert store.compactions == 2
    assert (upkeep.expired.total(), upkeep.evicted.total(), list(store.days)) == (1, 0, ["id-0"])


@pytest.mark.parametrize(("most", "looks"), [(None, 2), (0, 3)])
def test_what_was_asked_so_long_ago_goes_with_old_episodes(most: int | None, looks: int) -> None:
    clock, asked = Clock(), []
    store = cast(EpisodeStore, Store([1]))
    upkeep = Upkeep(store, max_days=30, max_episodes=most, forget_before=asked.append, monotonic=clock)
    for _ in range(3):
        upkeep.look()
        clock.seconds += EXPIRE_EVERY_S / 2
    assert len(asked) == looks
    assert timedelta(days=30) < now() - asked[0] < timedelta(days=31)


def test_too_many_are_found_at_every_look_and_nothing_is_read_while_there_are_not() -> None:
    store, clock = Store([1, 2, 3]), Clock()
    upkeep = of(store, clock, None, 3)
    upkeep.look()
    assert (store.reads, upkeep.evicted.total()) == (0, 0)
    store.days["new"] = 0
    clock.seconds += 60
    upkeep.look()
    assert (upkeep.evicted.total(), list(store.days)) == (2, ["id-0", "new"])


def test_without_a_limit_no_episode_is_even_counted() -> None:
    store, clock = Store([1e5]), Clock()
    of(store, clock, None, None).look()
    assert (store.reads, store.counts, len(store.days)) == (0, 0, 1)


async def test_a_store_that_was_away_is_looked_after_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.001)
    store = Store([1, 2, 3])
    store.away = True
    watching = asyncio.create_task(of(store, Clock(), None, 1).watch())
    try:
        async with asyncio.timeout(30):
            while store.counts < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            store.away = False
            while len(store.days) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
