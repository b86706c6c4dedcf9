"""What each tenant has of its own beside memory: its priors, and its nights.

Owns that a tenant's parts are opened when first asked for, and once. Knows nothing of how they are built
(`server/wiring.py`). How many there may be is bounded where API keys are made.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from memory.registry import PriorRegistry
from memory.tenants import parted
from server.nights import NightCoordinator
from server.priors import Priors
from server.steering.priors import ActivePrior


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
        build: Builds those of one, running.
    """

    def __init__(self, build: Callable[[str], Awaitable[Parts]]) -> None:
        self._build = build
        self._open: dict[str, Parts] = {}
        self._opening = asyncio.Lock()

    async def of(self, tenant: str) -> Parts:
        """Return a tenant's parts."""
        if tenant not in self._open:
            async with self._opening:
                if tenant not in self._open:
                    self._open[tenant] = await self._build(tenant)
        return self._open[tenant]

    def changed(self, part: str | None) -> None:
        """Look which prior serves in a part of the space (`memory/tenants.py`) now; None: in all of them."""
        for parts in self._open.values():
            if part is None or parted(part)[1] == parts.tenant:
                parts.prior.poke()

    async def prior_of(self, tenant: str) -> ActivePrior:
        """Return what follows a tenant's active prior."""
        return (await self.of(tenant)).prior
