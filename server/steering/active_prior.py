"""The prior that serves right now, and the versions that requests pin.

Owns the swap: a new version, or another choice of its rows, takes the old one's place in one assignment, so a
request that took its snapshot before finishes on what it started with. Of the active version those rows serve
that the evidence speaks for, all of them where an operator has chosen it. Outcomes that the day observes come
in here, too. Knows nothing of how priors are trained or announced, or of how outcomes are measured.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from memory.episode import Array, LatentMemoryError
from memory.evidence import Evidence, Standing
from memory.prior import Prior, Row
from memory.registry import PriorRegistry
from memory.state import Source, State
from memory.tenants import parted
from server.steering.metrics import Metrics

logger = logging.getLogger(__name__)

_SILENT: Mapping[Standing, str] = {"on trial": "prior-on-trial", "retired": "prior-retired"}
"""Reasons of answers that covering rows have no part in."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A row to measure, and the row that would answer without it; None: no latent would."""

    row: Row
    baseline: Row | None


@dataclass(frozen=True, eq=False)
class Serving:
    """One version, and what of it serves. A request keeps the one it started with."""

    prior: Prior
    """The rows that serve."""
    whole: Prior
    """All rows."""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """About each row, by its id; none where a request has named the version."""
    pinned: bool = False
    """Whether all rows serve because an operator has chosen this version."""

    def silence(self, key: Array | None) -> str | None:
        """Return why no row that covers `key`, (d,), speaks; None: one does, or none covers it.

        Without a key, which is not looked for where no row speaks at all: why none does.
        """
        if self.prior.rows and (key is None or self.prior.covers(key)):
            return None
        rows = self.whole.rows if key is None else self.whole.covering(key)
        covering = [self.evidence[row.id].standing for row in rows]
        return next((reason for standing, reason in _SILENT.items() if standing in covering), None)

    def comparisons(self, key: Array, prompt: str) -> tuple[Comparison, ...]:
        """Return what the prompt with this `key`, (d,), and digest can measure.

        That is the newest row that serves by its evidence, against the next one that does, and rows on trial
        that are newer, against it. Rows that have learned from the prompt know its answer by heart, so those
        and what is compared with them are left out.
        """
        rows = [row for row in self.whole.covering(key) if row.id in self.evidence]
        standing = {row.id: self.evidence[row.id].standing for row in rows}
        served = [row for row in rows if standing[row.id] == "serves"]
        served_by, without = (*served[:2], None, None)[:2]
        newer = rows[: rows.index(served_by)] if served_by else rows
        comparisons = [Comparison(row, served_by) for row in newer if standing[row.id] == "on trial"]
        if served_by is not None:
            comparisons.append(Comparison(served_by, without))
        return tuple(
            one
            for one in comparisons
            if not self._knows(one.row, prompt) and not self._knows(one.baseline, prompt)
        )

    def _knows(self, row: Row | None, prompt: str) -> bool:
        return row is not None and prompt in self.whole.learned.get(row.id, ())


class ActivePrior:
    """Holds the active prior and follows the registry's pointer and the evidence.

    Args:
        registry: Versions of this engine's space and of one tenant.
        state: Outcomes of answering with their rows.
        poll_s: How often both are read.
        tell: Tells other gateways to look, for what serves here has changed; blocks, in a thread.
        kept: Versions that stay loaded for requests that pin them.
    """

    def __init__(
        self,
        registry: PriorRegistry,
        state: State,
        *,
        poll_s: float,
        metrics: Metrics,
        kept: int = 4,
        tell: Callable[[], object] | None = None,
    ) -> None:
        self._registry, self._state = registry, state
        self._poll_s, self._metrics, self._kept, self._tell_others = poll_s, metrics, kept, tell
        self._serving: Serving | None = None
        self._seen: tuple[object, ...] | None = None
        """What the state said when this came to serve."""
        self._loaded: OrderedDict[str, Prior] = OrderedDict()
        self._complaint: str | None = None
        self._refreshing = asyncio.Lock()
        self._poked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def serving(self) -> Serving | None:
        """Return the active version and what of it serves. A request asks once and keeps what it got."""
        return self._serving

    def current(self) -> Prior | None:
        """Return the rows of the active version that serve."""
        return self._serving.prior if self._serving else None

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

    async def observe(self, prompt: str, differences: Mapping[str, float], source: Source = "day") -> None:
        """Note what answering a prompt, by its digest, with rows was worth, and look what serves now.

        Args:
            prompt: digest of the prompt.
            differences: by the row's id, in [-1, 1].
            source: who has observed it.

        Raises:
            StateUnavailableError, NoRoomError: it could not be noted.
        """
        for row, difference in differences.items():
            await asyncio.to_thread(
                self._state.add_outcomes, *parted(self._registry.space), row, [(prompt, difference)], source
            )
        await self.refresh()

    async def refresh(self) -> bool:
        """Look once and return whether what serves changed. Failures keep the old one."""
        async with self._refreshing:
            version: str | None = None
            try:
                version = await asyncio.to_thread(self._registry.active)
                whole = None if version is None else await self.get(version)
                seen = await asyncio.to_thread(self._look, whole)
                if seen == self._seen:
                    self._complaint = None
                    return False
                serving = None if whole is None else await asyncio.to_thread(self._weigh, whole)
            except (LatentMemoryError, OSError, ValueError) as error:
                self._complain(version, error)
                return False
            before, self._serving = self._serving, serving
            self._seen, self._complaint = seen, None
            self._tell(before, serving)
            changed = _identity(before) != _identity(serving)
            if changed:
                logger.info("prior %s serves, after %s", version, before and before.prior.version)
                self._metrics.swaps.labels("swapped").inc()
                if self._tell_others is not None:  # who was told looks too, and finds nothing new
                    asyncio.get_running_loop().run_in_executor(None, self._tell_others)
            return changed

    def _look(self, whole: Prior | None) -> tuple[object, ...] | None:
        """Return what changes whenever something else may serve; blocks."""
        if whole is None:
            return None
        seen = self._state.seen_outcomes(*parted(whole.space), [row.id for row in whole.rows])
        erased = tuple(one.row for one in self._state.erased_rows(whole.space))
        return whole.version, whole.manifest.get("sha256"), self._registry.pinned(), seen, erased

    def _weigh(self, whole: Prior) -> Serving:
        """Return what serves of a version; blocks."""
        pinned = self._registry.pinned()
        evidence = self._state.evidence(whole)
        if pinned:
            return Serving(whole, whole, evidence, pinned)
        serves = [row for row, weighed in evidence.items() if weighed.standing == "serves"]
        return Serving(whole.only(serves), whole.only(evidence), evidence)

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

    def summary(self) -> dict[str, Any]:
        """Return the active version and the evidence about its rows, as JSON values."""
        serving = self._serving
        if serving is None:
            return {"version": None, "pinned": False, "rows": {}}
        return {
            "version": serving.whole.version,
            "pinned": serving.pinned,
            "rows": {row: asdict(weighed) for row, weighed in serving.evidence.items()},
        }

    def _tell(self, before: Serving | None, serving: Serving | None) -> None:
        """Log whose standing has changed."""
        known = before.evidence if before else {}
        evidence = serving.evidence if serving else {}
        for row, weighed in evidence.items():
            if weighed.standing != (known[row].standing if row in known else "on trial"):
                logger.info(
                    "row %s %s: %+.2f on %d prompts, e-value %.3g for it, %.3g against it",
                    row,
                    "serves" if weighed.standing == "serves" else f"is {weighed.standing}",
                    weighed.mean,
                    weighed.n,
                    weighed.e_value,
                    weighed.e_against,
                )

    def _complain(self, version: str | None, error: Exception) -> None:
        """Log and count a failure once, not at every poll."""
        complaint = f"{version}: {error}"
        if complaint != self._complaint:
            self._complaint = complaint
            self._metrics.swaps.labels("failed").inc()
            logger.error(
                "prior %s cannot be loaded, %s keeps serving: %s",
                version,
                self._serving.whole.version if self._serving else "no prior",
                error,
            )


def _identity(serving: Serving | None) -> tuple[object, ...] | None:
    if serving is None:
        return None
    prior = serving.prior
    return prior.version, prior.manifest.get("sha256"), tuple(row.id for row in prior.rows)


PriorsOf = Callable[[str], Awaitable[ActivePrior]]
"""Returns what follows a tenant's active prior."""
