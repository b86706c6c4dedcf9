"""The memory as a map, and the kinds of request that it holds.

Owns which episodes are drawn, when a map is drawn anew, and which rows of the prior belong to which kind. A
process of its own draws (`server/projection.py`), when somebody looks and memory has changed enough since.
Kept are ids and places: what an episode says is read anew by whoever shows it, so that nothing of one that
was forgotten is shown. Knows nothing of HTTP.
"""

import asyncio
import heapq
import io
import logging
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from memory.episode import Array, LatentMemoryError, now
from memory.prior import CLUSTER_COSINE, Prior, unit
from memory.store import EpisodeStore, Outline, Where
from server.steering.active_prior import PriorsOf
from server.steering.store_access import StoreAccess

logger = logging.getLogger(__name__)

MOST = 1500
"""Most episodes on a map, chosen by their ids, so that the same ones come again."""
TYPICAL = 5
"""Prompts that stand for a kind of request."""
CHANGED = 0.05
"""Share of the drawn episodes that has to be new or gone until they are drawn anew."""
REST_S = 15.0
"""Shortest time from one drawing to the next."""
TIMEOUT_S = 300.0
"""Longest time that a drawing may take."""
MOST_TENANTS = 16
"""Whose maps are kept."""
PAGE = 128
"""Episodes that are in memory at a time while their keys are read."""


class ProjectionError(Exception):
    """The process that draws has failed."""


@dataclass(frozen=True)
class Kind:
    """Requests of one kind."""

    episodes: int
    """How many of those that were drawn."""
    typical: tuple[str, ...]
    """Ids of those nearest to their middle."""
    rows: tuple[str, ...]
    """Ids of rows of the prior that are for it, the ones born last first."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A map as it was drawn."""

    drawn_at: datetime
    episodes: int
    """How many there were in all."""
    version: str | None
    """Of the prior that was active."""
    places: Mapping[str, tuple[float, float, int]]
    """By the episode's id: where it is, within [-1, 1], and the number of its kind."""
    kinds: tuple[Kind, ...]
    """The largest first."""
    strangers: tuple[str, ...]
    """Rows of the prior that cover nothing of what was drawn."""


@dataclass(frozen=True, eq=False)
class View:
    """What there is to look at."""

    drawing: Drawing | None
    """None: there is none yet."""
    outlines: Mapping[str, Outline]
    """Of what was drawn and is still remembered."""
    updating: bool
    """Whether a newer one is being drawn."""
    failure: str | None
    """Why the last one was not drawn."""
    count: int
    """Episodes that there are."""


Projected = tuple[Array, NDArray[np.int64]]
Project = Callable[[Array, Array], Awaitable[Projected]]
"""Takes keys, (n, d), and earlier places, (n, 2), NaN where there is none; returns places and clusters."""


async def in_a_process(keys: Array, before: Array) -> Projected:
    """Return what `server/projection.py` makes of keys.

    Raises:
        ProjectionError: it failed, or took too long.
    """
    archive = io.BytesIO()
    np.savez(archive, keys=keys, before=before)
    script = Path(__file__).with_name("projection.py")
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(script), str(CLUSTER_COSINE), stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, complaint = await child.communicate(archive.getvalue())
    except TimeoutError:
        raise ProjectionError(f"it took longer than {TIMEOUT_S:g} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise ProjectionError(f"exit code {child.returncode}: {last}")
    with np.load(io.BytesIO(said), allow_pickle=False) as drawn:
        return drawn["places"], drawn["clusters"]


class Landscape:
    """Maps of what tenants remember.

    Args:
        store: Where episodes are; asked as statistics ask it.
        prior_of: Finds whose rows are for which kind.
        project: Draws.
        rest_s: Shortest time from one drawing to the next.
    """

    def __init__(
        self,
        store: StoreAccess,
        prior_of: PriorsOf,
        *,
        project: Project = in_a_process,
        rest_s: float = REST_S,
    ) -> None:
        self._store, self._prior_of, self._project, self._rest_s = store, prior_of, project, rest_s
        self._drawings: OrderedDict[str, Drawing] = OrderedDict()
        self._begun: dict[str, float] = {}
        """When the last drawing of each tenant was begun."""
        self._failures: dict[str, str] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._one = asyncio.Semaphore(1)

    async def look(self, tenant: str) -> View:
        """Return what there is, and have it drawn anew when it is no longer like the memory.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        drawing = self._drawings.get(tenant)
        ids = tuple(drawing.places) if drawing else ()

        def read(store: EpisodeStore) -> tuple[int, list[Outline]]:
            return store.count(tenant=tenant), store.outlines_of(ids)

        count, outlines = await self._store.call(read)
        serving = (await self._prior_of(tenant)).serving()
        version = serving.whole.version if serving else None
        if tenant not in self._running and self._has_changed(tenant, version, count, len(outlines)):
            self._begun[tenant] = time.monotonic()
            task = asyncio.create_task(self._draw(tenant, count), name=f"map of {tenant}")
            self._running[tenant] = task
            task.add_done_callback(lambda _: self._running.pop(tenant, None))
        return View(
            drawing,
            {one.id: one for one in outlines},
            tenant in self._running,
            self._failures.get(tenant),
            count,
        )

    async def settled(self) -> None:
        """Wait until nothing is being drawn."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def close(self) -> None:
        """End what is being drawn."""
        for task in [*self._running.values()]:
            task.cancel()
        await self.settled()

    def _has_changed(self, tenant: str, version: str | None, count: int, there: int) -> bool:
        drawing = self._drawings.get(tenant)
        if drawing is None and not count:
            return False
        if tenant in self._begun and time.monotonic() - self._begun[tenant] < self._rest_s:
            return False
        if drawing is None or drawing.version != version:
            return True
        changed = abs(count - drawing.episodes) + len(drawing.places) - there
        return changed > 0 and changed >= CHANGED * len(drawing.places)

    async def _draw(self, tenant: str, count: int) -> None:
        try:
            async with self._one:
                serving = (await self._prior_of(tenant)).serving()
                ids, keys = await self._store.call(lambda store: _keys(store, tenant))
                if not ids:
                    self._drawings.pop(tenant, None)
                    return
                known = self._drawings.get(tenant)
                before = np.full((len(ids), 2), np.nan, np.float32)
                for at, name in enumerate(ids):
                    if known is not None and name in known.places:
                        before[at] = known.places[name][:2]
                places, clusters = await self._project(keys, before)
                whole = serving.whole if serving else None
                drawing = await asyncio.to_thread(_drawing, ids, keys, places, clusters, whole, count)
        except (LatentMemoryError, ProjectionError, OSError, ValueError, BadZipFile) as error:
            logger.warning("the map of the memory could not be drawn: %s", error)
            self._failures[tenant] = str(error)
            return
        self._failures.pop(tenant, None)
        self._drawings[tenant] = drawing
        self._drawings.move_to_end(tenant)
        while len(self._drawings) > MOST_TENANTS:
            self._drawings.popitem(last=False)


def _keys(store: EpisodeStore, tenant: str) -> tuple[list[str], Array]:
    """Return the ids of the episodes to draw, and their keys, (n, d)."""
    wanted = heapq.nsmallest(MOST, (one.id for one in store.outlines(Where(tenant))))
    found: list[tuple[str, Array]] = []
    for start in range(0, len(wanted), PAGE):
        found += [(one.id, one.key) for one in store.fetch(wanted[start : start + PAGE])]
    found.sort(key=lambda one: one[0])  # the same memory, the same map
    keys = [key for _, key in found]
    return [name for name, _ in found], np.stack(keys).astype(np.float32) if keys else np.empty((0, 0), "f4")


def _drawing(
    ids: list[str],
    keys: Array,
    places: Array,
    clusters: NDArray[np.int64],
    prior: Prior | None,
    count: int,
) -> Drawing:
    sizes = Counter(clusters.tolist())
    ranks = {cluster: rank for rank, (cluster, _) in enumerate(sizes.most_common())}
    numbers = np.array([ranks[cluster] for cluster in clusters.tolist()])
    rows_of: dict[int, list[str]] = {}
    strangers = []
    for row in sorted(prior.rows if prior else (), key=lambda row: -row.born):
        coverage = row.coverage
        covered = numbers[(keys @ coverage.centroids.T >= coverage.thresholds).any(axis=1)]
        if len(covered):
            rows_of.setdefault(int(np.bincount(covered).argmax()), []).append(row.id)
        else:
            strangers.append(row.id)
    kinds = []
    for number in range(len(sizes)):
        members = np.flatnonzero(numbers == number)
        middle = unit(keys[members].mean(axis=0, keepdims=True))[0]
        nearest = members[np.argsort(-(keys[members] @ middle), kind="stable")[:TYPICAL]]
        typical = tuple(ids[at] for at in nearest)
        kinds.append(Kind(len(members), typical, tuple(rows_of.get(number, ()))))
    drawn: dict[str, Any] = {
        name: (float(x), float(y), int(number))
        for name, (x, y), number in zip(ids, places.tolist(), numbers, strict=True)
    }
    return Drawing(now(), count, prior.version if prior else None, drawn, tuple(kinds), tuple(strangers))
