"""Starting nights: one at a time, never without enough, never for ever in the way, none forgotten."""

import asyncio
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory.episode import Episode, StoreUnavailableError, now
from memory.night import NightLog, NightRunningError, NightStateError
from memory.snapshot import read_snapshot
from memory.state import ChosenSchedule, State
from memory.store import Outline, Where
from server.errors import QueueUnreachableError
from server.nights import AGAIN_AFTER_MOST_S, AGAIN_AFTER_S, STALE_AFTER_S, NightCoordinator
from server.schedule import ERASURE_AFTER, NEVER, RETRY_AFTER, Plan, Schedule
from tests.records import overwrite

SPACE = "space-a"


class ListedStore:
    """As much of an episode store as nights ask for."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.episodes: list[Episode] = []
        self.away = False
        self.scrolled = 0
        self.most_alive = 0
        """Most episodes that were in memory at a time."""
        self._fetched: list[weakref.ref[Episode]] = []

    def add(self, count: int, reward: float = 0.8, **known: Any) -> None:
        for _ in range(count):
            self.episodes.append(
                Episode(
                    **known,
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

    def outlines(self, where: Where) -> Iterator[Outline]:
        self.scrolled += 1
        if self.away:
            raise StoreUnavailableError("no answer")
        for one in self.episodes:
            yield Outline(one.id, one.reward, bool(one.choices), one.seen, one.seen_last, one.created_at)

    def fetch(self, episode_ids: Sequence[str]) -> list[Episode]:
        wanted = set(episode_ids)
        found = [replace(episode) for episode in self.episodes if episode.id in wanted]
        self._fetched = [one for one in self._fetched if one() is not None]
        self._fetched += map(weakref.ref, found)
        self.most_alive = max(self.most_alive, len(self._fetched))
        return found

    def count(self, *, since: datetime, tenant: str = "default") -> int:
        if self.away:
            raise StoreUnavailableError("no answer")
        return sum(episode.created_at > since for episode in self.episodes)


class Time:
    """A clock that nobody sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


class Broker:
    """A queue that may be away, and forgets what it holds when it is told to."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.sent = 0
        self.away = False

    def send(self, night_id: str) -> None:
        if self.away:
            raise ConnectionError("refused")
        self.messages.append(night_id)
        self.sent += 1

    def waiting(self) -> int:
        if self.away:
            raise ConnectionError("refused")
        return len(self.messages)


@pytest.fixture
def store(state: State) -> ListedStore:
    return ListedStore(state)


@pytest.fixture
def log(state: State) -> NightLog:
    return NightLog(state)


def coordinator(
    store: ListedStore,
    log: NightLog,
    root: Path,
    kind: Any = NightCoordinator,
    every: int = 0,
    **changes: Any,
) -> Any:
    values: dict[str, Any] = {
        "space": SPACE,
        "store": store,
        "log": log,
        "snapshots": root / "snapshots",
        "send": lambda _: None,
        "min_episodes": 4,
        "min_reward": 0.5,
        "schedule": Schedule(Plan(NEVER, every), SPACE, store.state, lambda since: store.count(since=since)),
        "pause_s": 0.01,
        "look_s": 0.05,
    }
    return kind(**(values | changes))


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
    assert night.episodes == len(list(read_snapshot(tmp_path / "snapshots" / night.id))) == 5


async def test_what_a_snapshot_holds_in_memory_does_not_grow_with_it(
    store: ListedStore, log: NightLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.nights.PAGE", 8)
    store.add(100)
    night = await coordinator(store, log, tmp_path).start("api")
    assert night.episodes == 100
    assert store.most_alive <= 2 * 8


async def test_an_episode_that_is_deleted_meanwhile_is_left_out(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    class Forgetful(ListedStore):
        def fetch(self, episode_ids: Sequence[str]) -> list[Episode]:
            return super().fetch(episode_ids)[1:]

    forgetful = Forgetful(store.state)
    forgetful.add(6)
    night = await coordinator(forgetful, log, tmp_path).start("api")
    assert (night.state, night.episodes) == ("queued", 5)


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


async def test_answers_that_were_chosen_count_whatever_their_reward(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    """The night labels them anew."""
    store.add(9, reward=0.1)
    store.episodes = [replace(episode, choices=("7", "8")) for episode in store.episodes]
    night = await coordinator(store, log, tmp_path).start("api")
    assert (night.state, night.episodes) == ("queued", 9)


async def test_of_two_at_once_one_is_refused(store: ListedStore, log: NightLog, tmp_path: Path) -> None:
    store.add(5)
    nights = coordinator(store, log, tmp_path)
    results = await asyncio.gather(nights.start("api"), nights.start("cli"), return_exceptions=True)
    assert sum(isinstance(result, NightRunningError) for result in results) == 1


async def test_night_whose_worker_is_gone_makes_room(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    store.add(5)
    time = Time()
    nights = coordinator(store, log, tmp_path, monotonic=time)
    lost = log.update(replace(await nights.start("api"), state="running"))
    with pytest.raises(NightRunningError):
        await nights.start("api")
    time.passes(STALE_AFTER_S)
    night = await nights.start("api")
    assert night.state == "queued"
    ended = log.get(lost.id)
    assert ended is not None
    assert ended.state == "failed"
    assert [folder.name for folder in (tmp_path / "snapshots").iterdir()] == [night.id]


@pytest.mark.parametrize(
    "set_by", [timedelta(days=-400), timedelta(hours=-1), timedelta(hours=1), timedelta(days=400)]
)
async def test_a_clock_that_is_set_ends_no_night_that_lives(
    store: ListedStore, log: NightLog, tmp_path: Path, set_by: timedelta
) -> None:
    store.add(5)
    time = Time()
    nights = coordinator(store, log, tmp_path, monotonic=time, clock=lambda: datetime.now(UTC) + set_by)
    night = log.update(replace(await nights.start("api"), state="running"))
    for _ in range(30):
        await nights.look()
        time.passes(60)
        log.update(night)  # as its worker does
    found = log.get(night.id)
    assert found is not None
    assert found.state == "running"


async def test_a_request_at_any_moment_ends_no_night_that_lives(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    asked: list[Any] = []

    class Interrupted(NightCoordinator):
        """Another thread asks for a night after every change of what the coordinator knows."""

        armed = False

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if self.armed:
                super().__setattr__("armed", False)
                with ThreadPoolExecutor(1) as another:
                    asked.append(another.submit(asyncio.run, self.start("api")).exception())
                super().__setattr__("armed", True)

    nights = coordinator(store, log, tmp_path, kind=Interrupted, monotonic=lambda: 2 * STALE_AFTER_S)
    log.update(replace(log.create(SPACE, "api"), state="running"))
    object.__setattr__(nights, "armed", True)
    await nights.look()
    assert [type(error) for error in asked] == [NightRunningError] * len(asked) != []
    assert [night.state for night in log.list()] == ["running"]


async def test_a_record_from_the_future_stands_in_nobodys_way(
    store: ListedStore, log: NightLog, state: State, tmp_path: Path
) -> None:
    """The clock was ahead when it was written."""
    store.add(5)
    time = Time()
    nights = coordinator(store, log, tmp_path, monotonic=time, every=5)
    future = datetime.now(UTC) + timedelta(days=4000)
    ended = replace(await nights.start("api"), created_at=future, updated_at=future, state="running")
    overwrite(state, ended)
    await nights.look()
    time.passes(STALE_AFTER_S)
    await nights.look()
    found = log.get(ended.id)
    assert found is not None
    assert found.state == "failed"
    running = log.running(SPACE)
    assert running is not None
    assert running.trigger == "episodes"


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
    store: ListedStore, log: NightLog, state: State, tmp_path: Path
) -> None:
    store.add(5)
    time = Time()
    nights = coordinator(store, log, tmp_path, monotonic=time, every=5)
    long_ago = datetime.now(UTC) - timedelta(seconds=STALE_AFTER_S)
    lost = replace(await nights.start("api"), state="running", created_at=long_ago, updated_at=long_ago)
    overwrite(state, lost)
    store.add(5)
    await nights.look()
    time.passes(STALE_AFTER_S)
    await nights.look()
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
    monkeypatch.setattr("server.schedule.RETRY_AFTER", timedelta())
    nights.remembered(store.episodes[-1], "stored")
    assert await asyncio.wait_for(queued.get(), 10)
    watching.cancel()


async def test_a_night_that_failed_late_is_not_tried_again_at_once(
    store: ListedStore, log: NightLog, state: State, tmp_path: Path
) -> None:
    store.add(5)
    nights, queued = counting(store, log, tmp_path)
    failed = await nights.start("api")
    assert await asyncio.wait_for(queued.get(), 10) == failed.id
    began = replace(failed, created_at=failed.created_at - RETRY_AFTER)
    overwrite(state, began)
    log.update(replace(began, state="failed"))
    watching = asyncio.create_task(nights.watch())
    nights.remembered(store.episodes[-1], "stored")
    await asyncio.sleep(0.1)
    watching.cancel()
    assert [night.id for night in log.list()] == [failed.id]


@pytest.mark.parametrize(
    ("end", "created", "finished"),
    [
        ("refused", timedelta(days=400), timedelta(days=400)),
        ("failed", timedelta(days=400), timedelta(days=400)),
        ("failed", timedelta(hours=-1), timedelta(days=400)),
    ],
)
async def test_a_night_that_ended_in_the_future_holds_up_no_other(
    store: ListedStore,
    log: NightLog,
    state: State,
    tmp_path: Path,
    end: Any,
    created: timedelta,
    finished: timedelta,
) -> None:
    """The clock was ahead, and was set right meanwhile."""
    moment = datetime.now(UTC)
    ended = replace(
        log.create(SPACE, "episodes"), state=end, created_at=moment + created, finished_at=moment + finished
    )
    overwrite(state, ended)
    store.add(5)
    await coordinator(store, log, tmp_path, every=5).look()
    assert log.running(SPACE) is not None


NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
NIGHT = datetime(2026, 11, 27, 3, 0, tzinfo=UTC)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@dataclass
class Scheduled:
    """A gateway whose nights start at three, and the time of day around it."""

    store: ListedStore
    log: NightLog
    broker: Broker
    root: Path
    state: State
    moment: datetime = NOON
    time: Time = field(default_factory=Time)

    def restart(self) -> None:
        self.nights = coordinator(
            self.store,
            self.log,
            self.root,
            send=self.broker.send,
            waiting=self.broker.waiting,
            schedule=Schedule(Plan("0 3 * * *", 0), SPACE, self.state),
            clock=lambda: self.moment,
            monotonic=self.time,
        )

    async def pass_minutes(self, minutes: int) -> None:
        for _ in range(minutes):
            self.moment += timedelta(minutes=1)
            self.time.passes(60)
            await self.nights.look()

    @property
    def found(self) -> list[tuple[str, datetime | None]]:
        return [(night.state, night.scheduled_for) for night in self.log.list()]


@pytest.fixture
async def scheduled(
    store: ListedStore, log: NightLog, broker: Broker, tmp_path: Path, state: State
) -> Scheduled:
    made = Scheduled(store, log, broker, tmp_path, state)
    made.restart()
    await made.nights.look()
    store.add(5)
    return made


async def test_a_night_that_was_missed_is_asked_for_once_the_gateway_is_there(scheduled: Scheduled) -> None:
    scheduled.moment = NIGHT + timedelta(hours=5)
    scheduled.restart()
    await scheduled.pass_minutes(3)
    assert scheduled.found == [("queued", NIGHT)]
    assert len(scheduled.broker.messages) == 1
    [night] = scheduled.log.list()
    scheduled.log.update(replace(night, state="refused"))
    scheduled.restart()
    await scheduled.pass_minutes(3)
    assert scheduled.found == [("refused", NIGHT)]


async def test_a_night_is_overdue_until_it_was_started(scheduled: Scheduled) -> None:
    def overdue() -> datetime | None:
        return scheduled.nights.overdue([time for _, time in scheduled.found])

    assert overdue() is None
    scheduled.moment = NIGHT + timedelta(minutes=5)
    assert overdue() == NIGHT
    await scheduled.nights.look()
    assert overdue() is None


async def test_a_night_that_is_due_waits_for_the_one_under_way(scheduled: Scheduled) -> None:
    first = await scheduled.nights.start("api")
    scheduled.moment = NIGHT
    await scheduled.pass_minutes(3)
    assert scheduled.found == [("queued", None)]
    scheduled.log.update(replace(first, state="refused"))
    await scheduled.pass_minutes(1)
    assert sorted(scheduled.found, key=str) == [("queued", NIGHT), ("refused", None)]


async def test_gateways_of_one_space_start_a_due_night_once(scheduled: Scheduled) -> None:
    scheduled.moment = NIGHT
    first = scheduled.nights
    scheduled.restart()
    results = await asyncio.gather(first.look(), scheduled.nights.look(), return_exceptions=True)
    assert [result for result in results if result and not isinstance(result, NightRunningError)] == []
    assert scheduled.found == [("queued", NIGHT)]
    with pytest.raises(NightRunningError):
        scheduled.log.create(SPACE, "schedule", NIGHT)
    [night] = scheduled.log.list()
    scheduled.log.update(replace(night, state="skipped"))
    with pytest.raises(NightRunningError):
        scheduled.log.create(SPACE, "schedule", NIGHT)


async def test_too_little_to_consolidate_is_found_once_for_a_scheduled_time(scheduled: Scheduled) -> None:
    scheduled.store.episodes.clear()
    scheduled.moment = NIGHT
    await scheduled.pass_minutes(5)
    assert scheduled.found == [("skipped", NIGHT)]


async def test_a_broker_that_is_away_delays_a_night_and_costs_one_snapshot(scheduled: Scheduled) -> None:
    scheduled.broker.away = True
    scheduled.moment = NIGHT
    await scheduled.pass_minutes(120)
    assert scheduled.found == [("queued", NIGHT)]
    [night] = scheduled.log.list()
    assert "ConnectionError: refused" in night.message
    assert scheduled.store.scrolled == 1
    scheduled.broker.away = False
    await scheduled.pass_minutes(int(AGAIN_AFTER_MOST_S / 60) + 2)
    assert scheduled.broker.messages == [night.id]


async def test_a_broker_that_was_away_for_days_gets_the_night_in_the_end(scheduled: Scheduled) -> None:
    scheduled.broker.away = True
    scheduled.moment = NIGHT
    for _ in range(2200):  # a look that tries again, and one that finds the record changed by that
        scheduled.time.passes(AGAIN_AFTER_MOST_S)
        await scheduled.nights.look()
    scheduled.broker.away = False
    await scheduled.pass_minutes(int(AGAIN_AFTER_MOST_S / 60) + 2)
    [night] = scheduled.log.list()
    assert scheduled.broker.messages == [night.id]


async def test_a_night_that_is_sent_later_tells_its_episodes_and_of_no_failure(scheduled: Scheduled) -> None:
    scheduled.broker.away = True
    scheduled.moment = NIGHT
    await scheduled.pass_minutes(1)
    [night] = scheduled.log.list()
    assert (night.episodes, night.state) == (5, "queued")
    assert "could not be queued" in night.message
    scheduled.broker.away = False
    await scheduled.pass_minutes(5)
    assert len(scheduled.broker.messages) == 1
    [night] = scheduled.log.list()
    assert (night.episodes, night.state, night.message) == (5, "queued", "")


async def test_a_night_that_could_not_be_sent_tells_its_episodes(scheduled: Scheduled) -> None:
    scheduled.broker.away = True
    with pytest.raises(QueueUnreachableError, match="ConnectionError: refused"):
        await scheduled.nights.start("api")
    [night] = scheduled.log.list()
    assert (night.episodes, night.state) == (5, "failed")


async def test_a_memory_that_is_away_delays_a_night(scheduled: Scheduled) -> None:
    scheduled.store.away = True
    scheduled.moment = NIGHT
    await scheduled.pass_minutes(120)
    assert scheduled.found == [("queued", NIGHT)]
    assert scheduled.store.scrolled < 20, "asked less and less often"
    scheduled.store.away = False
    await scheduled.pass_minutes(int(AGAIN_AFTER_MOST_S / 60) + 2)
    [night] = scheduled.log.list()
    assert night.episodes == 5
    assert scheduled.broker.messages == [night.id]


async def test_without_a_worker_one_snapshot_and_one_message_wait(scheduled: Scheduled) -> None:
    scheduled.moment = NIGHT
    await scheduled.pass_minutes(60)
    scheduled.restart()
    await scheduled.pass_minutes(60)
    scheduled.moment += timedelta(days=3)
    await scheduled.pass_minutes(60)
    assert scheduled.found == [("queued", NIGHT)]
    assert scheduled.store.scrolled == 1
    assert len(list((scheduled.root / "snapshots").iterdir())) == 1
    assert scheduled.broker.sent == 1


async def test_a_message_that_the_broker_lost_is_sent_again(scheduled: Scheduled) -> None:
    scheduled.moment = NIGHT
    await scheduled.pass_minutes(1)
    [night] = scheduled.log.list()
    scheduled.broker.messages.clear()
    await scheduled.pass_minutes(3)
    assert scheduled.broker.messages == [night.id]
    assert scheduled.store.scrolled == 1


@pytest.mark.parametrize("trigger", ["api", "schedule", "episodes"])
async def test_a_gateway_that_died_over_the_snapshot_leaves_it_to_the_next(
    scheduled: Scheduled, trigger: Any
) -> None:
    night = scheduled.log.create(SPACE, trigger)
    scheduled.restart()
    await scheduled.pass_minutes(1 + int(AGAIN_AFTER_S / 60))
    assert scheduled.broker.messages == [night.id]
    assert len(list(read_snapshot(scheduled.root / "snapshots" / night.id))) == 5


async def test_snapshots_of_ended_and_unknown_nights_are_swept_at_the_start(scheduled: Scheduled) -> None:
    ended, snapshots = await scheduled.nights.start("api"), scheduled.root / "snapshots"
    scheduled.log.update(replace(ended, state="failed"))
    queued = await scheduled.nights.start("api")
    for folder in (snapshots / "11111111-1111-1111-1111-111111111111", snapshots / ".new"):
        folder.mkdir()
    watching = asyncio.create_task(scheduled.nights.watch())
    for _ in range(1000):
        await asyncio.sleep(0.01)
        left = {folder.name for folder in snapshots.iterdir()}
        if len(left) == 2:
            break
    watching.cancel()
    assert left == {queued.id, ".new"}


async def test_a_night_by_episode_count_is_asked_for_again_when_memory_is_back(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    nights, queued = counting(store, log, tmp_path)
    store.add(5)
    store.away = True
    watching = asyncio.create_task(nights.watch())
    nights.remembered(store.episodes[-1], "stored")
    await asyncio.sleep(0.1)
    store.away = False  # and nothing new is remembered
    assert await asyncio.wait_for(queued.get(), 10)
    watching.cancel()


async def test_what_was_too_little_for_a_scheduled_night_still_counts(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    nights = coordinator(store, log, tmp_path, every=5)
    store.add(3)
    log.update(replace(log.create(SPACE, "schedule", NIGHT), state="skipped"))
    store.add(1)
    await nights.look()
    assert len(log.list()) == 1
    store.add(1)
    await nights.look()
    assert log.list()[0].trigger == "episodes"


async def test_poor_episodes_are_counted_once(store: ListedStore, log: NightLog, tmp_path: Path) -> None:
    nights = coordinator(store, log, tmp_path, every=5)
    store.add(5, reward=0.1)
    for _ in range(3):
        await nights.look()
    assert [night.state for night in log.list()] == ["skipped"]


async def test_a_broker_that_hangs_holds_up_no_other_work(
    store: ListedStore, log: NightLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.nights.SEND_TIMEOUT_S", 0.01)
    store.add(5)
    released = threading.Event()
    nights = coordinator(store, log, tmp_path, send=lambda _: released.wait())
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    try:
        async with asyncio.timeout(60):
            for _ in range(4):
                with pytest.raises(QueueUnreachableError):
                    await nights.start("api")
    finally:
        released.set()
    assert {night.state for night in log.list()} == {"failed"}


async def test_a_queued_night_that_is_cancelled_ends_at_once_and_makes_room(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    store.add(5)
    nights = coordinator(store, log, tmp_path)
    night = await nights.start("api")
    assert (await nights.cancel(night.id)).state == "cancelled"
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert (await nights.start("api")).state == "queued"
    with pytest.raises(NightStateError):
        await nights.cancel(night.id)


@pytest.mark.parametrize("asked", [True, False])
async def test_a_night_that_is_cancelled_while_its_snapshot_is_written_leaves_none(
    store: ListedStore, log: NightLog, tmp_path: Path, asked: bool
) -> None:
    class Slow(ListedStore):
        def fetch(self, episode_ids: Sequence[str]) -> list[Episode]:
            running = log.running(SPACE)
            if running is not None:
                log.cancel(running.id)
            return super().fetch(episode_ids)

    slow, sent = Slow(store.state), list[str]()
    slow.add(6)
    nights = coordinator(slow, log, tmp_path, every=5, send=sent.append)
    if asked:
        assert (await nights.start("api")).state == "cancelled"
    else:
        await nights.look()
    assert [night.state for night in log.list()] == ["cancelled"]
    assert (list((tmp_path / "snapshots").iterdir()), sent) == ([], [])


async def test_a_night_by_episodes_that_was_cancelled_does_not_begin_again_by_itself(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    store.add(5)
    nights = coordinator(store, log, tmp_path, every=5)
    await nights.look()
    [night] = log.list()
    await nights.cancel(night.id)
    await nights.look()
    assert len(log.list()) == 1
    store.add(5)
    await nights.look()
    assert [one.state for one in log.list()] == ["queued", "cancelled"]


async def test_a_schedule_that_is_changed_takes_hold_without_a_restart(
    store: ListedStore, log: NightLog, tmp_path: Path
) -> None:
    store.add(5)
    nights, elsewhere = (coordinator(store, log, tmp_path) for _ in range(2))
    await nights.look()
    assert log.list() == []
    await elsewhere.choose_schedule(ChosenSchedule(episodes=5))
    assert (await nights.outlook()).plan == Plan(NEVER, 5)
    await nights.look()
    assert [night.trigger for night in log.list()] == ["episodes"]


async def test_an_erasure_starts_a_night_by_itself(store: ListedStore, log: NightLog, tmp_path: Path) -> None:
    store.add(5)
    moment = datetime.now(UTC) + ERASURE_AFTER
    nights = coordinator(store, log, tmp_path, clock=lambda: moment + timedelta(minutes=1))
    await nights.look()
    await nights.erased({}, now())
    await nights.look()
    assert log.list() == []
    await nights.erased({"v1/0": True}, now())
    await nights.look()
    await nights.look()
    assert [night.trigger for night in log.list()] == ["erasure"]
