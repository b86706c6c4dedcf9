"""What each tenant has of its own beside memory: its priors, and its nights.

Owns that a tenant's parts are opened when first asked for, and once, and that those of one none of whose keys
works any more are closed. Knows nothing of how they are built (`server/wiring.py`). How many there may be is
bounded where API keys are made.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from memory.episode import TENANT, Episode
from memory.registry import PriorRegistry
from memory.tenants import parted
from server.nights import NightCoordinator
from server.priors import Priors
from server.steering.active_prior import ActivePrior

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The priors and nights of one tenant."""

    tenant: str
    registry: PriorRegistry
    priors: Priors
    prior: ActivePrior
    nights: NightCoordinator


class Tenants:
    """The parts of all tenants.

    Args:
        build: Builds those of one, running until they are closed.
    """

    def __init__(self, build: Callable[[str], AbstractAsyncContextManager[Parts]]) -> None:
        self._build = build
        self._open: dict[str, tuple[Parts, AsyncExitStack]] = {}
        self._opening = asyncio.Lock()

    async def of(self, tenant: str) -> Parts:
        """Return a tenant's parts."""
        if tenant not in self._open:
            async with self._opening:
                if tenant not in self._open:
                    stack = AsyncExitStack()
                    parts = await stack.enter_async_context(self._build(tenant))
                    self._open[tenant] = parts, stack
        return self._open[tenant][0]

    async def keep(self, tenants: Collection[str]) -> None:
        """Have the parts of these open, and no others but the default one's.

        A request under way goes on with what it has; one that comes later opens them again. What cannot be
        opened or closed is logged, and the others are all the same.
        """
        for tenant in self._open.keys() - {TENANT, *tenants}:
            try:
                await self._open.pop(tenant)[1].aclose()
            except Exception:
                logger.exception("the priors and nights of tenant %s were not closed in order", tenant)
        for tenant in tenants:
            try:
                await self.of(tenant)
            except Exception:
                logger.exception("the priors and nights of tenant %s cannot be opened", tenant)

    async def close(self) -> None:
        """Close all."""
        while self._open:
            await self._open.popitem()[1][1].aclose()

    def changed(self, part: str | None) -> None:
        """Look which prior serves in a part of the space (`memory/tenants.py`) now; None: in all of them."""
        for parts, _ in self._open.values():
            if part is None or parted(part)[1] == parts.tenant:
                parts.prior.poke()

    def remembered(self, episode: Episode, fate: str) -> None:
        """Tell a tenant's nights that an episode of its is new. A listener for `Remember`."""
        if episode.tenant in self._open:
            self._open[episode.tenant][0].nights.remembered(episode, fate)

    async def prior_of(self, tenant: str) -> ActivePrior:
        """Return what follows a tenant's active prior."""
        return (await self.of(tenant)).prior
