"""What happens to memory while nobody asks: too much and too old goes, and files forget what was deleted.

Owns when that is looked at, and the counts of it. Knows nothing of the rule (`memory/retention.py`) or of
files.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from memory.episode import TENANT, LatentMemoryError, now
from memory.retention import departing
from memory.store import EpisodeStore, Where

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
"""How often it is looked whether there are too many episodes."""
EXPIRE_EVERY_S = 3600.0
"""How often it is looked for old ones, for which all have to be read."""
COMPACT_EVERY_S = 86_400.0
"""How often files are written anew when something was deleted; nothing is stored meanwhile."""
_AT_ONCE = 256


class Upkeep:
    """Keeps one store as the settings want it, for each tenant by itself.

    Args:
        store: Of all episodes.
        max_days: Days after which an episode goes whose prompt did not come again; None: never.
        max_episodes: Most episodes of a tenant; None: as many as there are.
        tenants: Says whose memories there are; blocks.
        forget_before: Forgets what was asked and answered before a moment, and is not remembered; blocks.
    """

    def __init__(
        self,
        store: EpisodeStore,
        *,
        max_days: float | None,
        max_episodes: int | None,
        tenants: Callable[[], Sequence[str]] = lambda: (TENANT,),
        forget_before: Callable[[datetime], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._max_days, self._max_episodes = store, max_days, max_episodes
        self._tenants = tenants
        self._forget_before, self._monotonic = forget_before, monotonic
        self._expired_at = self._compacted_at = float("-inf")
        self.expired: Counter[str] = Counter()
        """By tenant, episodes that went for their age, since the start."""
        self.evicted: Counter[str] = Counter()
        """Those that went for want of room, since the start."""
        self.forgotten: Counter[str] = Counter()
        """Those that somebody deleted, since the start."""

    async def watch(self) -> None:
        """Look after the store until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await asyncio.to_thread(self.look)
            except LatentMemoryError as error:
                logger.warning("memory is not tidied: %s", error)
            except Exception:
                logger.exception("memory is not tidied")

    def look(self) -> None:
        """Let go what has to, and compact files when that is due; blocks.

        Raises:
            StoreUnavailableError, NoRoomError: the next look goes on.
        """
        moment = self._monotonic()
        aged = self._max_days is not None and moment - self._expired_at >= EXPIRE_EVERY_S
        full = [tenant for tenant in self._tenants() if aged or self._too_many(tenant)]
        for tenant in full:
            self._let_go(tenant)
        if full and self._max_days is not None:
            self._forget_before(now() - timedelta(days=self._max_days))
        if aged:
            self._expired_at = moment
        if moment - self._compacted_at >= COMPACT_EVERY_S:
            self.compact()
            self._compacted_at = moment

    def compact(self) -> bool:
        """Have files hold no more what was deleted, and return whether anything was; blocks.

        Raises:
            StoreUnavailableError, NoRoomError: nothing changes.
        """
        done = self._store.compact()
        if done:
            logger.info("the files of memory are written anew, without what was deleted")
        return done

    def _too_many(self, tenant: str) -> bool:
        return self._max_episodes is not None and self._store.count(tenant=tenant) > self._max_episodes

    def _let_go(self, tenant: str) -> None:
        found = departing(
            self._store.outlines(Where(tenant)),
            at=now(),
            max_days=self._max_days,
            max_episodes=self._max_episodes,
        )
        self.expired[tenant] += self._delete(found.expired)
        self.evicted[tenant] += self._delete(found.evicted)
        if found.expired or found.evicted:
            logger.info(
                "%d episodes go for their age, %d for want of room", len(found.expired), len(found.evicted)
            )

    def _delete(self, names: list[str]) -> int:
        parts = [names[at : at + _AT_ONCE] for at in range(0, len(names), _AT_ONCE)]
        return sum(self._store.delete(part) for part in parts)
