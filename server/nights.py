"""Starting nights.

Owns what the gateway does for a night: the record that keeps it the only one, the snapshot it works on,
the message in the queue, and the trigger by number of new episodes. Knows nothing of how a night
trains; its worker keeps the record from then on.
"""

import asyncio
import heapq
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from memory.episode import Episode, LatentMemoryError, now
from memory.free_space import UNLIMITED, FreeSpace
from memory.night import NightLog, NightRecord, Trigger
from memory.snapshot import MAX_EPISODES, write_snapshot
from memory.store import EpisodeStore
from server.errors import QueueUnreachableError

logger = logging.getLogger(__name__)

STALE_AFTER = timedelta(minutes=15)
"""A night without a sign of life for so long has lost its worker."""
RETRY_AFTER = timedelta(minutes=10)
"""Of a night by episode count that failed; those by hand and by schedule are not held up."""
SEND_TIMEOUT_S = 10.0


class NightCoordinator:
    """Creates night records, writes their snapshots and queues them, one at a time per space.

    Args:
        space: Id of the latent space.
        send: Queues the night of an id; blocks; raises when the broker does not answer.
        snapshots: Folder of the snapshots.
        min_episodes: Fewest episodes a night can work with.
        min_reward: Least reward of an episode that goes into a snapshot.
        every: New episodes that start a night; 0: never.
        room: Asked before a snapshot is written.
        pause_s: Shortest pause between two looks at how many episodes are new.
    """

    def __init__(
        self,
        *,
        space: str,
        store: EpisodeStore,
        log: NightLog,
        snapshots: Path,
        send: Callable[[str], None],
        min_episodes: int,
        min_reward: float,
        every: int,
        room: FreeSpace = UNLIMITED,
        pause_s: float = 5.0,
    ) -> None:
        self._space, self._store, self._log, self._snapshots = space, store, log, snapshots
        self._send, self._every, self._pause_s, self._room = send, every, pause_s, room
        self._min_episodes, self._min_reward = min_episodes, min_reward
        self._remembered = asyncio.Event()
        self._remembered.set()  # look once at the start

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
            record = await asyncio.to_thread(self._prepare, record)
        except Exception as error:
            await self._fail(record, f"no snapshot: {error}")
            raise
        if record.ended:
            logger.info("night %s is skipped: %s", record.id, record.message)
            return record
        try:
            await asyncio.wait_for(asyncio.to_thread(self._send, record.id), SEND_TIMEOUT_S)
        except Exception as error:  # whatever the transport raises: kombu's, redis', OSError
            await self._fail(record, f"the queue is unreachable: {type(error).__name__}: {error}")
            raise QueueUnreachableError(
                "the night could not be queued; start the broker of LATENTEVOLVE_BROKER_URL and ask again"
            ) from error
        logger.info("night %s is queued by %s with %d episodes", record.id, trigger, record.episodes)
        return record

    async def watch(self) -> None:
        """Start a night whenever enough episodes are new. Runs until it is cancelled."""
        while self._every:
            await self._remembered.wait()
            self._remembered.clear()
            try:
                if await asyncio.to_thread(self._enough_new):
                    await self.start("episodes")
            except (LatentMemoryError, QueueUnreachableError, OSError) as error:
                logger.warning("no night by episode count: %s", error)
            except Exception:
                logger.exception("no night by episode count")
            await asyncio.sleep(self._pause_s)

    def remembered(self, _: Episode, fate: str) -> None:
        """Note that an episode is new. A listener for `Remember`."""
        if fate == "stored":
            self._remembered.set()

    async def list(self) -> list[NightRecord]:
        """Return the nights of every space, newest first."""
        return await asyncio.to_thread(self._log.list)

    async def get(self, night_id: str) -> NightRecord | None:
        """Return one night."""
        return await asyncio.to_thread(self._log.get, night_id)

    def _end_stale(self) -> bool:
        """End the night whose worker is gone, and return whether there was one."""
        night = self._log.running(self._space)
        if night is None or now() - night.updated_at <= STALE_AFTER:
            return False
        logger.warning("night %s gave no sign of life since %s", night.id, night.updated_at)
        self._log.update(replace(night, state="failed", error="its worker gave no sign of life"))
        self._drop_snapshot(night)
        return True

    def _prepare(self, record: NightRecord) -> NightRecord:
        """Write the snapshot, or nothing when that is not worth it."""
        good = (
            replace(episode, latent=np.asarray(episode.latent, np.float16))  # as it is written
            for episode in self._store.scroll(min_reward=self._min_reward)
        )
        newest = heapq.nlargest(MAX_EPISODES, good, key=lambda episode: episode.seen_last)
        if len(newest) < self._min_episodes:
            message = (
                f"{len(newest)} episodes of reward {self._min_reward:g} or more;"
                f" a night needs {self._min_episodes}"
            )
            skipped = replace(record, state="skipped", episodes=len(newest), message=message)
            return self._log.update(skipped)
        written = write_snapshot(newest, self._snapshots / record.id)
        return self._log.update(replace(record, episodes=written))

    async def _fail(self, record: NightRecord, error: str) -> None:
        logger.error("night %s failed: %s", record.id, error)
        await asyncio.to_thread(self._log.update, replace(record, state="failed", error=error))
        await asyncio.to_thread(self._drop_snapshot, record)

    def _drop_snapshot(self, ended: NightRecord) -> None:
        """Delete what no worker will read; a worker deletes those of the nights that it ends."""
        shutil.rmtree(self._snapshots / ended.id, ignore_errors=True)

    def _enough_new(self) -> bool:
        waited = self._end_stale()
        if self._log.running(self._space) is not None:
            return False
        nights = [night for night in self._log.list() if night.space == self._space]
        if nights and nights[0].state == "failed" and not waited:
            ended = nights[0].finished_at or nights[0].created_at
            if now() - ended < RETRY_AFTER:
                return False
        # What a failed night was to consolidate is still to be consolidated.
        last = next((night for night in nights if night.state != "failed"), None)
        since = last.created_at if last is not None else datetime.fromtimestamp(0, UTC)
        return self._store.count(since=since) >= self._every
