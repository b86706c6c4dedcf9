"""Starting nights.

Owns what the gateway does for a night: the record that keeps it the only one, the snapshot it works on,
the message in the queue, and that those that are due (`server/schedule.py`) begin. Knows nothing of how a
night trains; its worker keeps the record from then on.
"""

import asyncio
import heapq
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from memory.episode import TENANT, Episode, LatentMemoryError, now
from memory.free_space import UNLIMITED, FreeSpace
from memory.listing import Place
from memory.night import (
    NightError,
    NightLog,
    NightPage,
    NightRecord,
    NightRunningError,
    NightStateError,
    Trigger,
)
from memory.snapshot import MAX_EPISODES, write_snapshot
from memory.state import ChosenSchedule
from memory.store import EpisodeStore, Where
from memory.tenants import parted, partition
from server.errors import QueueUnreachableError
from server.schedule import Outlook, Schedule

logger = logging.getLogger(__name__)

STALE_AFTER_S = 900.0
"""A running night whose record does not change for so long has lost its worker."""
AGAIN_AFTER_S = 60.0
"""A queued night whose record does not change for so long is handed to the queue again, should it be lost."""
AGAIN_AFTER_MOST_S = 600.0
"""The same, when that has failed some times."""
SEND_TIMEOUT_S = 10.0
_SAID = 160
"""Of what a broker says that refuses, which may be a page long."""
PAGE = 128
"""Episodes of a snapshot that are in memory at a time."""


class NightCoordinator:
    """Creates night records of a tenant, writes their snapshots and queues them, one at a time per space.

    Args:
        space: Id of the latent space.
        tenant: Whose nights they are.
        send: Queues the night of an id; blocks; raises when the broker does not answer.
        waiting: Returns how many messages no worker has taken; blocks and raises as `send` does.
        snapshots: Folder of the snapshots.
        schedule: Which nights are due by themselves.
        min_episodes: Fewest episodes a night can work with.
        min_reward: Least reward of an episode that goes into a snapshot.
        room: Asked before a snapshot is written.
        pause_s: Shortest pause between two looks at what is due.
        look_s: Longest pause between two looks.
        clock: The time of day.
        monotonic: Seconds since some moment; unlike the time of day nobody sets it.
    """

    def __init__(
        self,
        *,
        space: str,
        tenant: str = TENANT,
        store: EpisodeStore,
        log: NightLog,
        snapshots: Path,
        send: Callable[[str], None],
        schedule: Schedule,
        waiting: Callable[[], int] = lambda: 0,
        min_episodes: int,
        min_reward: float,
        room: FreeSpace = UNLIMITED,
        pause_s: float = 5.0,
        look_s: float = 60.0,
        clock: Callable[[], datetime] = now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._space, self._tenant = partition(space, tenant), tenant
        self._store, self._log, self._snapshots = store, log, snapshots
        self._send, self._waiting, self._schedule = send, waiting, schedule
        self._room = room
        self._min_episodes, self._min_reward = min_episodes, min_reward
        self._pause_s, self._look_s, self._clock, self._monotonic = pause_s, look_s, clock, monotonic
        self._poked = asyncio.Event()
        # A broker that hangs holds up this thread alone.
        self._queue_thread = ThreadPoolExecutor(1, "night-queue")
        self._in_hand: str | None = None
        """The night that this process is preparing or sending."""
        self._seen: tuple[str, datetime, float] | None = None
        """The open night, its last sign of life, and since when both are so. One value: threads share it."""
        self._again_s = AGAIN_AFTER_S
        """How long the open night may wait unchanged; doubled each time that it cannot be queued."""

    async def start(self, trigger: Trigger) -> NightRecord:
        """Queue a night and return its record; state `skipped` when there are too few episodes.

        Raises:
            NoRoomError: the disk is too full for a snapshot.
            NightRunningError: one is queued or running.
            QueueUnreachableError: the broker does not answer; the record says `failed`.
            LatentMemoryError: there is no snapshot; the record says `failed`.
        """
        await asyncio.to_thread(self._room.demand, "a night's snapshot")
        await asyncio.to_thread(self._end_stale)
        record = await asyncio.to_thread(self._log.create, self._space, trigger)
        try:
            return await self._hand_over(record)
        except NightStateError:  # cancelled meanwhile
            await asyncio.to_thread(self._drop_snapshot, record.id)
            return await asyncio.to_thread(self._log.get, record.id) or record
        except QueueUnreachableError as error:
            await self._fail(record, f"the queue is unreachable: {_reason(error)}")
            raise
        except Exception as error:
            await self._fail(record, f"no snapshot: {error}")
            raise

    async def watch(self) -> None:
        """Start nights that are due, and see to the one that is open. Runs until it is cancelled.

        What is due stays due until a record says that it was started, so whatever fails is tried again.
        """
        with suppress(LatentMemoryError, OSError):
            await asyncio.to_thread(self._sweep)
        said = ""
        while True:
            self._poked.clear()
            try:
                await self.look()
                said = ""
            except NightRunningError as error:
                logger.debug("another gateway was faster: %s", error)
            except Exception as error:
                if said != repr(error):  # once, not every minute
                    said = repr(error)
                    logger.warning("no look at what nights are due: %s", said, exc_info=True)
            await asyncio.sleep(self._pause_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._poked.wait(), self._look_s)

    async def look(self) -> None:
        """Start the night that is due, if any, unless one is open; hand that one to the queue if it is lost.

        Raises:
            NightRunningError: another gateway has just started it.
            LatentMemoryError, OSError: memory or records cannot be read or written.
        """
        await asyncio.to_thread(self._end_stale)
        record = await asyncio.to_thread(self._log.running, self._space)
        if record is None:
            record = await asyncio.to_thread(self._create_due)
            self._again_s = AGAIN_AFTER_S
        elif not self._lost(record):
            return
        if record is not None:
            await self._hand_over_or_wait(record)

    def remembered(self, episode: Episode, fate: str) -> None:
        """Note that an episode is new. A listener for `Remember`."""
        if fate == "stored" and episode.tenant == self._tenant:
            self._poked.set()

    async def outlook(self) -> Outlook:
        """Return what is planned, and what has become of it.

        Raises:
            LatentMemoryError: memory or records cannot be read.
        """
        return await asyncio.to_thread(lambda: self._schedule.outlook(self._nights(), self._clock()))

    async def choose_schedule(self, chosen: ChosenSchedule) -> None:
        """Let what an operator has chosen hold, on every gateway within a minute; nothing: the settings.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        await asyncio.to_thread(self._schedule.choose, chosen, self._clock())
        self._poked.set()

    async def erased(self, rows: Mapping[str, bool], since: datetime) -> None:
        """Let later nights do without rows that learned from what was erased; one is due if any is active.

        Args:
            rows: whether each is in the active version, by its id.
            since: when this erasure began, which may note its rows more than once.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        await asyncio.to_thread(self._schedule.note_erasure, rows, since)
        self._poked.set()

    async def cancel(self, night_id: str) -> NightRecord:
        """End a night that is queued or running, and return its record; its worker stops within seconds.

        Raises:
            UnknownNightError: there is no night of that id.
            NightStateError: it has ended, or is publishing already.
            StateUnavailableError, NoRoomError: it cannot be written.
        """
        record = await asyncio.to_thread(self._log.cancel, night_id)
        logger.info("night %s is %s", record.id, record.message)
        await asyncio.to_thread(self._drop_snapshot, record.id)
        self._poked.set()  # another one may be due
        return record

    async def page(self, limit: int, after: Place | None) -> NightPage:
        """Return a page of the tenant's nights of every space, newest first.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        return await asyncio.to_thread(self._log.page, self._tenant, limit, after)

    def overdue(self, scheduled: Collection[datetime | None]) -> datetime | None:
        """Return the scheduled time that no night was started for until now; None: there is none. Blocks.

        Args:
            scheduled: Times of the schedule that nights were for, the last one at least.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be read, or written.
        """
        return self._schedule.missed(scheduled, self._clock())

    async def get(self, night_id: str) -> NightRecord | None:
        """Return one night of the tenant."""
        night = await asyncio.to_thread(self._log.get, night_id)
        return night if night is not None and self._is_own(night) else None

    def _is_own(self, night: NightRecord) -> bool:
        return parted(night.space)[1] == self._tenant

    async def _hand_over_or_wait(self, record: NightRecord) -> None:
        """Hand over a night that no client waits for: it stays queued, and what fails is tried again."""
        try:
            await self._hand_over(record)
        except NightStateError:  # cancelled meanwhile
            message = ""
            await asyncio.to_thread(self._drop_snapshot, record.id)
        except Exception as error:
            self._again_s = min(2 * self._again_s, AGAIN_AFTER_MOST_S)
            message = (
                f"could not be queued at {self._clock().isoformat(timespec='seconds')}: {_reason(error)}"
            )
            logger.warning("night %s %s; tried again in %.0f s", record.id, message, self._again_s)
        else:
            self._again_s, message = AGAIN_AFTER_S, ""
        with suppress(LatentMemoryError):  # a worker has taken it just now, or the disk is full
            await asyncio.to_thread(self._note, record.id, message)

    def _note(self, night_id: str, message: str) -> None:
        """Let the record of a night that waits say why; once it is sent, nothing."""
        night = self._log.get(night_id)
        if night is not None and night.state == "queued" and night.message != message:
            self._log.update(replace(night, message=message))

    def _lost(self, night: NightRecord) -> bool:
        """Whether the open night waits for a worker without anything happening."""
        return (
            night.state == "queued"
            and night.id != self._in_hand
            and self._unchanged_for(night, self._again_s)
        )

    async def _hand_over(self, record: NightRecord) -> NightRecord:
        """Write the snapshot, send the message, and return the record.

        A night that has its snapshot is sent only if no message waits: so there are never many of one night.

        Raises:
            QueueUnreachableError: from what the transport raised.
        """
        self._in_hand = record.id
        try:
            again = (self._snapshots / record.id).is_dir()
            if not again:
                record = await asyncio.to_thread(self._prepare, record)
            if record.ended:
                logger.info("night %s is skipped: %s", record.id, record.message)
                return record
            loop = asyncio.get_running_loop()
            sending = loop.run_in_executor(self._queue_thread, self._send_message, record, again)
            try:
                await asyncio.wait_for(sending, SEND_TIMEOUT_S)
            except Exception as error:  # whatever the transport raises: kombu's, redis', OSError
                raise QueueUnreachableError(
                    f"the night could not be queued, {_reason(error)[:_SAID]}: look at the broker of"
                    " LATENTEVOLVE_BROKER_URL and ask again"
                ) from error
            return record
        finally:
            self._in_hand = self._seen = None

    def _send_message(self, record: NightRecord, again: bool) -> None:
        if again and self._waiting():
            return
        self._send(record.id)
        logger.info(
            "night %s is queued%s by %s with %d episodes",
            record.id,
            " again" if again else "",
            record.trigger,
            record.episodes,
        )

    def _end_stale(self) -> None:
        """End the running night whose worker is gone."""
        night = self._log.running(self._space)
        if night is None or night.state != "running" or not self._unchanged_for(night, STALE_AFTER_S):
            return
        logger.warning("night %s gave no sign of life since %s", night.id, night.updated_at)
        error, ended = "its worker gave no sign of life", night.updated_at
        with suppress(NightError):  # it has ended by itself just now
            self._log.update(replace(night, state="failed", error=error, finished_at=ended))
        self._drop_snapshot(night.id)

    def _unchanged_for(self, night: NightRecord, seconds: float) -> bool:
        """Return whether this process has seen no sign of life of the open night for so long.

        Dates are only compared with themselves: clocks of worker and gateway may differ, and be set.
        """
        seen, moment = self._seen, self._monotonic()
        if seen is None or seen[:2] != (night.id, night.updated_at):
            self._seen = seen = (night.id, night.updated_at, moment)
        return moment - seen[2] >= seconds

    def _create_due(self) -> NightRecord | None:
        """Write the record of the night that is due, if any."""
        due = self._schedule.due(self._nights(), self._clock())
        return self._log.create(self._space, due[0].trigger, due[0].scheduled_for) if due else None

    def _nights(self) -> Sequence[NightRecord]:
        """Return the nights of the space, newest first."""
        return self._log.list(self._space)

    def _prepare(self, record: NightRecord) -> NightRecord:
        """Write the snapshot, or nothing when that is not worth it."""
        good = (
            (one.seen_last, one.id)
            for one in self._store.outlines(Where(self._tenant))
            # Choices are labelled anew.
            if one.replayable and (one.held_to_choices or one.reward >= self._min_reward)
        )
        newest = [episode_id for _, episode_id in heapq.nlargest(MAX_EPISODES, good)]
        if len(newest) < self._min_episodes:
            message = (
                f"{len(newest)} episodes of reward {self._min_reward:g} or more whose text is kept;"
                f" a night needs {self._min_episodes}"
            )
            skipped = replace(record, state="skipped", episodes=len(newest), message=message)
            return self._log.update(skipped)
        written = write_snapshot(self._fetched(newest), self._snapshots / record.id)
        return self._log.update(replace(record, episodes=written))

    def _fetched(self, episode_ids: Sequence[str]) -> Iterator[Episode]:
        """Yield those of the episodes that there still are, a page at a time, as long as there is room."""
        for start in range(0, len(episode_ids), PAGE):
            page = self._store.fetch(episode_ids[start : start + PAGE])
            self._room.demand("a night's snapshot", sum(e.key.nbytes + e.latent.nbytes for e in page))
            yield from page

    async def _fail(self, record: NightRecord, error: str) -> None:
        logger.error("night %s failed: %s", record.id, error)
        latest = await asyncio.to_thread(self._log.get, record.id) or record  # its snapshot may be counted
        with suppress(NightStateError):  # cancelled meanwhile
            await asyncio.to_thread(self._log.update, replace(latest, state="failed", error=error))
        await asyncio.to_thread(self._drop_snapshot, record.id)

    def _sweep(self) -> None:
        """Delete snapshots of nights that have ended: their gateway or worker died before it could."""
        for folder in self._snapshots.glob("[!.]*"):
            night = self._log.get(folder.name)
            if night is None or night.ended:
                self._drop_snapshot(folder.name)

    def _drop_snapshot(self, night_id: str) -> None:
        """Delete what no worker will read; a worker deletes those of the nights that it ends."""
        shutil.rmtree(self._snapshots / night_id, ignore_errors=True)


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, QueueUnreachableError) else error
    return f"{type(cause).__name__}: {cause}"
