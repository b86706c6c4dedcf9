"""The prior that serves right now, and the versions that requests pin.

Owns the swap: a new version is loaded in a thread and takes the old one's place in one assignment, so a
request that took its snapshot before finishes on what it started with. Knows nothing of how priors are
trained or announced.
"""

import asyncio
import logging
from collections import OrderedDict

from memory.episode import LatentMemoryError
from memory.prior import Prior
from memory.registry import PriorRegistry
from server.steering.metrics import Metrics

logger = logging.getLogger(__name__)


class ActivePrior:
    """Holds the active prior and follows the registry's pointer.

    Args:
        registry: Versions of this engine's space.
        poll_s: How often the pointer is read.
        kept: Versions that stay loaded for requests that pin them.
    """

    def __init__(self, registry: PriorRegistry, *, poll_s: float, metrics: Metrics, kept: int = 4) -> None:
        self._registry, self._poll_s, self._metrics, self._kept = registry, poll_s, metrics, kept
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
        for known in (self._current, self._loaded.get(version)):
            if known is not None and _is(known, version, digest):
                prior = known
                break
        else:
            prior = await asyncio.to_thread(self._registry.load, version)
        if prior is not self._current:
            self._loaded[version] = prior
            self._loaded.move_to_end(version)
        while len(self._loaded) > self._kept:
            self._loaded.popitem(last=False)
        return prior

    async def refresh(self) -> bool:
        """Follow the pointer once and return whether the prior changed. Failures keep the old one."""
        async with self._refreshing:
            version: str | None = None
            try:
                version = await asyncio.to_thread(self._registry.active)
                prior = None if version is None else await self.get(version)
                if prior is self._current:
                    self._complaint = None
                    return False
            except (LatentMemoryError, OSError, ValueError) as error:
                self._complain(version, error)
                return False
            logger.info("prior %s serves, after %s", version, self._current and self._current.version)
            self._current, self._complaint = prior, None
            self._metrics.swaps.labels("swapped").inc()
            self._metrics.show_active_prior(version)
            return True

    async def watch(self) -> None:
        """Follow the pointer until cancelled: at every poll, and at once when poked."""
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


def _is(prior: Prior, version: str, digest: str) -> bool:
    """Return whether a loaded prior is that version with those weights, which may have been replaced."""
    return prior.version == version and prior.manifest.get("sha256") == digest
