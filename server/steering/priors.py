"""The prior that serves right now, and the versions that requests pin.

Owns the swap: a new version, or another choice of its rows, takes the old one's place in one assignment, so a
request that took its snapshot before finishes on what it started with. Of the active version those rows serve
that the evidence speaks for, all of them where an operator has chosen it. Knows nothing of how priors are
trained or announced.
"""

import asyncio
import logging
from collections import OrderedDict

from memory.episode import LatentMemoryError
from memory.prior import Prior, standings
from memory.registry import PriorRegistry
from memory.state import State
from server.steering.metrics import Metrics

logger = logging.getLogger(__name__)

TENANT = "default"


class ActivePrior:
    """Holds the active prior and follows the registry's pointer.

    Args:
        registry: Versions of this engine's space.
        state: Outcomes of answering with their rows.
        poll_s: How often both are read.
        kept: Versions that stay loaded for requests that pin them.
    """

    def __init__(
        self, registry: PriorRegistry, state: State, *, poll_s: float, metrics: Metrics, kept: int = 4
    ) -> None:
        self._registry, self._state = registry, state
        self._poll_s, self._metrics, self._kept = poll_s, metrics, kept
        self._current: Prior | None = None
        self._loaded: OrderedDict[str, Prior] = OrderedDict()
        self._complaint: str | None = None
        self._refreshing = asyncio.Lock()
        self._poked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def current(self) -> Prior | None:
        """Return the active prior. A request calls this once and keeps what it got."""
        return self._current

    async def get(self, version: str) -> Prior:
        """Return one version, active or not.

        Raises:
            RegistryError: there is no such version, or it cannot be read.
        """
        digest = await asyncio.to_thread(self._registry.digest, version)
        prior = self._loaded.get(version)
        if prior is None or prior.manifest.get("sha256") != digest:  # which may have been replaced
            prior = await asyncio.to_thread(self._registry.load, version)
        self._loaded[version] = prior
        self._loaded.move_to_end(version)
        while len(self._loaded) > self._kept:
            self._loaded.popitem(last=False)
        return prior

    async def refresh(self) -> bool:
        """Look once and return whether what serves changed. Failures keep the old one."""
        async with self._refreshing:
            version: str | None = None
            try:
                version = await asyncio.to_thread(self._registry.active)
                prior = None if version is None else await self._serving(version)
            except (LatentMemoryError, OSError, ValueError) as error:
                self._complain(version, error)
                return False
            if _identity(prior) == _identity(self._current):
                self._complaint = None
                return False
            logger.info("prior %s serves, after %s", version, self._current and self._current.version)
            self._current, self._complaint = prior, None
            self._metrics.swaps.labels("swapped").inc()
            self._metrics.show_active_prior(version)
            return True

    async def _serving(self, version: str) -> Prior:
        prior = await self.get(version)
        if await asyncio.to_thread(self._registry.pinned):
            return prior
        outcomes = await asyncio.to_thread(self._state.outcomes, prior.space, TENANT)
        found = standings(prior, outcomes)
        return prior.only([row for row, evidence in found.items() if evidence.standing == "serves"])

    async def watch(self) -> None:
        """Look until cancelled: at every poll, and at once when poked."""
        self._loop = asyncio.get_running_loop()
        while True:
            try:
                await self.refresh()
            except Exception:
                logger.exception("looking for a new prior failed")
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._poked.wait()
            except TimeoutError:
                pass
            self._poked.clear()

    def poke(self) -> None:
        """Look at the pointer now. May be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._poked.set)

    def _complain(self, version: str | None, error: Exception) -> None:
        """Log and count a failure once, not at every poll."""
        complaint = f"{version}: {error}"
        if complaint != self._complaint:
            self._complaint = complaint
            self._metrics.swaps.labels("failed").inc()
            logger.error(
                "prior %s cannot be loaded, %s keeps serving: %s",
                version,
                self._current.version if self._current else "no prior",
                error,
            )


def _identity(prior: Prior | None) -> tuple[object, ...] | None:
    if prior is None:
        return None
    return prior.version, prior.manifest.get("sha256"), tuple(row.id for row in prior.rows)
