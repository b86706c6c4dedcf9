"""Starting nights: one at a time, never without enough, never for ever in the way."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory.atomic import write_json
from memory.episode import Episode, StoreUnavailableError
from memory.night import NightLog, NightRunningError
from memory.snapshot import read_snapshot
from server.errors import QueueUnreachableError
from server.nights import RETRY_AFTER, STALE_AFTER, NightCoordinator

SPACE = "space-a"


class ListedStore:
    """As much of an episode store as nights ask for."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []
        self.away = False

    def add(self, count: int, reward: float = 0.8) -> None:
        for _ in range(count):
            self.episodes.append(
                Episode(
                    space=SPACE,
                    key=np.eye(1, 8, dtype=np.float32)[0],
                    latent=np.zeros((2, 8), np.float32),
                    reward=reward,
                    signals={},
                    prompt_token_ids=(1,),
                    answer_token_ids=(2,),
                    prompt_text="q",
                    answer_text="a",
                )
            )

    def scroll(self, *, min_reward: float) -> Iterator[Episode]:
        if self.away:
            raise StoreUnavailableError("no answer")
        yield from (episode for episode in self.episodes if episode.reward >= min_reward)

    def count(self, *, since: datetime) -> int:
        if self.away:
            raise StoreUnavailableError("no answer")
        return sum(episode.created_at > since for episode in self.episodes)


@pytest.fixture
def store() -> ListedStore:
    return ListedStore()


@pytest.fixture
def log(tmp_path: Path) -> NightLog:
    return NightLog(tmp_path / "nights")


def coordinator(store: ListedStore, log: NightLog, root: Path, **changes: Any) -> NightCoordinator:
    values: dict[str, Any] = {
        "space": SPACE,
        "store": store,
        "log": log,
        "snapshots": root / "snapshots",
        "send": lambda _: None,
        "min_episodes": 4,
        "min_reward": 0.5,
        "every": 0,
        "pause_s": 0.01,
    }
    return NightCoordinator(**(values | changes))


def counting(store: ListedStore, log: NightLog, root: Path) -> tuple[NightCoordinator, asyncio.Queue[str]]:
    """Return a coordinator that starts a night every five episodes, and where the nights' ids arrive."""
    queued: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    return coordinator(
        store,
        log,
        root,
        every=5,
        send=lambda night_id: loop.call_soon_threadsafe(queued.put_nowait, night_id),
    ), queued


async def test_snapshot_holds_what_deserves_it(store: ListedStore, log: NightLog, tmp_path: Path) -> None:
    store.add(5)
    store.add(3, reward=0.1)
    night = await coordinator(store, log, tmp_path).start("api")
    assert night.episodes == len(read_snapshot(tmp_path / "snapshots" / night.id)) == 5


async def test_snapshot_holds_the_newest_when_there_are_too_many(
    store: ListedStore, log: NightLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.nights.MAX_EPISODES", 5)
    store.add(9)
    store.episodes.reverse()
    record = await coordinator(store, log, tmp_path).start("api")
    assert record.episodes == 5
    newest = sorted(store.episodes, key=lambda episode: episode.created_at)[-5:]
    written = read_snapshot(tmp_path / "snapshots" / record.id)
    assert {episode.id for episode in written} == {episode.id for episode in newest}


async def test_poor_episodes_do_not_count_as_enough(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    store.add(3)
    store.add(9, reward=0.1)
    night = await coordinator(store, log, tmp_path).start("api")
    assert (night.state, night.episodes) == ("skipped", 3)


async def test_of_two_at_once_one_is_refused(store: ListedStore, log: NightLog, tmp_path: Path) -> None:
    store.add(5)
    nights = coordinator(store, log, tmp_path)
    results = await asyncio.gather(nights.start("api"), nights.start("cli"), return_exceptions=True)
    assert sum(isinstance(result, NightRunningError) for result in results) == 1


async def test_night_whose_worker_is_gone_makes_room(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    store.add(5)
    nights = coordinator(store, log, tmp_path)
    lost = log.update(replace(await nights.start("api"), state="running"))
    with pytest.raises(NightRunningError):
        await nights.start("api")
    silent = replace(lost, updated_at=lost.updated_at - STALE_AFTER - timedelta(seconds=1))
    write_json(tmp_path / "nights" / f"{lost.id}.json", silent.to_json())
    night = await nights.start("api")
    assert night.state == "queued"
    ended = log.get(lost.id)
    assert ended is not None
    assert ended.state == "failed"
    assert [folder.name for folder in (tmp_path / "snapshots").iterdir()] == [night.id]


async def test_queue_that_hangs_fails_the_night(
    store: ListedStore, log: NightLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(5)
    monkeypatch.setattr("server.nights.SEND_TIMEOUT_S", 0.01)
    sent = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(_: str) -> None:
        asyncio.run_coroutine_threadsafe(sent.wait(), loop).result()

    with pytest.raises(QueueUnreachableError):
        await coordinator(store, log, tmp_path, send=hang).start("api")
    sent.set()
    assert [night.state for night in log.list()] == ["failed"]
    assert list((tmp_path / "snapshots").iterdir()) == []


async def test_store_that_is_away_fails_the_night(store: ListedStore, log: NightLog, tmp_path: Path) -> None:
    store.away = True
    with pytest.raises(StoreUnavailableError):
        await coordinator(store, log, tmp_path).start("api")
    assert [night.state for night in log.list()] == ["failed"]


async def test_new_episodes_start_a_night_and_are_new_only_once(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    nights, queued = counting(store, log, tmp_path)
    watching = asyncio.create_task(nights.watch())
    store.add(4)
    nights.remembered(store.episodes[-1], "stored")
    await asyncio.sleep(0.1)
    assert log.list() == []
    store.add(1)
    nights.remembered(store.episodes[-1], "stored")
    first = await asyncio.wait_for(queued.get(), 10)
    night = log.get(first)
    assert night is not None
    assert night.trigger == "episodes"
    log.update(replace(night, state="refused"))
    nights.remembered(store.episodes[-1], "stored")
    await asyncio.sleep(0.1)
    assert len(log.list()) == 1
    watching.cancel()


async def test_night_whose_worker_is_gone_does_not_keep_new_episodes_waiting(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    store.add(5)
    nights, queued = counting(store, log, tmp_path)
    lost = await nights.start("api")
    assert await asyncio.wait_for(queued.get(), 10) == lost.id
    long_ago = lost.created_at - STALE_AFTER - timedelta(seconds=1)
    silent = replace(lost, created_at=long_ago, updated_at=long_ago)
    write_json(tmp_path / "nights" / f"{lost.id}.json", silent.to_json())
    watching = asyncio.create_task(nights.watch())
    store.add(5)
    nights.remembered(store.episodes[-1], "stored")
    assert await asyncio.wait_for(queued.get(), 10)
    watching.cancel()
    assert {night.state for night in log.list()} == {"failed", "queued"}


async def test_what_a_failed_night_should_have_consolidated_starts_another_one_later(
    store: ListedStore, log: NightLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(5)
    nights, queued = counting(store, log, tmp_path)
    failed = await nights.start("api")
    assert await asyncio.wait_for(queued.get(), 10) == failed.id
    log.update(replace(failed, state="failed"))
    watching = asyncio.create_task(nights.watch())
    nights.remembered(store.episodes[-1], "stored")
    await asyncio.sleep(0.1)
    assert len(log.list()) == 1
    monkeypatch.setattr("server.nights.RETRY_AFTER", timedelta())
    nights.remembered(store.episodes[-1], "stored")
    assert await asyncio.wait_for(queued.get(), 10)
    watching.cancel()


async def test_a_night_that_failed_late_is_not_tried_again_at_once(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    store.add(5)
    nights, queued = counting(store, log, tmp_path)
    failed = await nights.start("api")
    assert await asyncio.wait_for(queued.get(), 10) == failed.id
    began = replace(failed, created_at=failed.created_at - RETRY_AFTER)
    write_json(tmp_path / "nights" / f"{failed.id}.json", began.to_json())
    log.update(replace(began, state="failed"))
    watching = asyncio.create_task(nights.watch())
    nights.remembered(store.episodes[-1], "stored")
    await asyncio.sleep(0.1)
    watching.cancel()
    assert [night.id for night in log.list()] == [failed.id]
