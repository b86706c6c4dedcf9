"""Episodes on their way into the store.

Owns the queue between requests, which never wait, and the store, which may be slow or away. Knows
nothing of which episodes deserve to be stored.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Literal

from memory.episode import Episode, EpisodeRejectedError, StoreUnavailableError
from memory.free_space import NoRoomError
from memory.store import EpisodeStore
from server.steering.background import Background
from server.steering.metrics import Metrics

logger = logging.getLogger(__name__)

Fate = Literal["stored", "failed", "dropped", "refused", "deleted"]
Listener = Callable[[Episode, Fate], None]
"""Called on the event loop once per episode, when its fate is settled."""


class Remember:
    """Writes episodes in the background, in batches.

    An episode counts as stored once `store.add` has returned, which promises that it survives the
    process. While the store is away its episodes wait; when the queue is full, new ones are dropped. While
    the disk has no room they are refused.

    Args:
        limit: Most episodes of a tenant that wait.
        batch: Most episodes per write.
        first_wait_s: Pause after a first failed write; doubles up to `longest_wait_s`.
    """

    def __init__(
        self,
        store: EpisodeStore,
        *,
        limit: int,
        metrics: Metrics,
        batch: int = 64,
        first_wait_s: float = 0.1,
        longest_wait_s: float = 10.0,
    ) -> None:
        self._store, self._limit, self._batch, self._metrics = store, limit, batch, metrics
        self._first_wait_s, self._longest_wait_s = first_wait_s, longest_wait_s
        self._waiting: deque[Episode] = deque()
        self._writing: list[Episode] = []
        self._listeners: list[Listener] = []
        self._storing = asyncio.Lock()
        """Held while the store is told something."""
        self._roomy = True
        self._background = Background("remember", self._write_some)

    @property
    def pending(self) -> int:
        """Episodes taken and not settled yet."""
        return len(self._waiting) + len(self._writing)

    def pending_of(self, tenant: str) -> int:
        """Return how many of them are a tenant's."""
        return sum(one.tenant == tenant for one in (*self._waiting, *self._writing))

    def listen(self, listener: Listener) -> None:
        """Have `listener` called when an episode's fate is settled."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to write. Needs a running event loop."""
        self._background.start()

    def submit(self, episode: Episode) -> bool:
        """Take an episode to be written and return at once; False when it was dropped."""
        if self.pending >= self._limit and self.pending_of(episode.tenant) >= self._limit:
            self._settle(episode, "dropped")
            return False
        self._waiting.append(episode)
        self._background.wake()
        return True

    async def write(self, episode: Episode, timeout_s: float) -> Fate | None:
        """Take an episode and return its fate; None where that took longer, and it still waits."""
        fates: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()

        def settled(one: Episode, fate: Fate) -> None:
            if one is episode and not fates.done():
                fates.set_result(fate)

        self._listeners.append(settled)
        try:
            self.submit(episode)
            async with asyncio.timeout(timeout_s):
                return await fates
        except TimeoutError:
            return None
        finally:
            self._listeners.remove(settled)

    async def delete(self, episode_id: str) -> bool:
        """Delete an episode, and what waits to be written of it; False when there is neither.

        Raises:
            StoreUnavailableError, NoRoomError: nothing is deleted.
        """
        async with self._storing:
            deleted = await asyncio.to_thread(self._store.delete, [episode_id])
            waiting = [one for one in (*self._writing, *self._waiting) if one.id == episode_id]
            self._waiting = deque(one for one in self._waiting if one.id != episode_id)
            for episode in waiting:
                self._settle(episode, "deleted")
        return bool(deleted or waiting)

    async def drain(self, timeout_s: float = 10.0) -> bool:
        """Wait until nothing is pending; False when that took too long."""
        return await self._background.drain(timeout_s)

    async def close(self, timeout_s: float = 10.0) -> None:
        """Write what is pending for at most so long, drop the rest and stop."""
        await self._background.close(timeout_s)
        left = [*self._writing, *self._waiting]
        self._writing = []
        self._waiting.clear()
        for episode in left:
            self._settle(episode, "dropped")
        if left:
            logger.error("%d episodes were not written before the end", len(left))

    async def _write_some(self) -> bool:
        if not self._waiting:
            return False
        self._writing = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
        await self._write(self._writing)
        return True

    async def _write(self, episodes: list[Episode]) -> None:
        """Write a batch however long the store is away; alone, when one of them spoils it for all."""
        wait_s = self._first_wait_s
        while True:
            try:
                async with self._storing:
                    # Whoever had the lock may have deleted some of them.
                    episodes = [one for one in episodes if any(one is other for other in self._writing)]
                    if not episodes:
                        return
                    await asyncio.to_thread(self._store.add, episodes)
                    self._roomy = True
            except NoRoomError as error:
                if self._roomy:
                    logger.error("nothing is remembered until there is room: %s", error)
                self._roomy = False
                for episode in episodes:
                    self._settle(episode, "refused")
                return
            except StoreUnavailableError as error:
                if wait_s == self._first_wait_s:
                    logger.warning("the store is away, %d episodes wait: %s", self.pending, error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, self._longest_wait_s)
                continue
            except Exception as error:
                if len(episodes) > 1:
                    for episode in episodes:
                        await self._write([episode])
                    return
                known = isinstance(error, EpisodeRejectedError)
                logger.error("episode %s was not stored: %s", episodes[0].id, error, exc_info=not known)
                self._settle(episodes[0], "failed")
                return
            for episode in episodes:
                self._settle(episode, "stored")
            return

    def _settle(self, episode: Episode, fate: Fate) -> None:
        self._writing = [other for other in self._writing if other is not episode]
        self._metrics.tally("episodes", fate, episode.tenant)
        for listener in self._listeners:
            try:
                listener(episode, fate)
            except Exception:
                logger.exception("a listener failed on episode %s (%s)", episode.id, fate)
