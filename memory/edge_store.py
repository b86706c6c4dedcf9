"""Episodes in Qdrant Edge, inside this process.

Owns what a shard holds and how it is asked; `memory/edge_shard.py` owns its files. Knows nothing of
collections on a server (`memory/qdrant_store.py`) or of what episodes are used for.

Neighbours are found by sketches, keys of one byte a number, in a graph or scanned; the nearest of these are
compared by their keys. A latent is text in the payload: of a vector, Edge makes a Python object for each
number, which takes longer than the search.

Durability: Edge appends each update to its write-ahead log before it applies it, and replays that
log when the shard is loaded, so an update that returned survives the death of the process. The
log is not synced per update: what a power failure can take is what the kernel had not yet written.
"""

import base64
import json
import logging
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

from memory.edge_shard import EdgeFolder
from memory.episode import Array, Episode, EpisodeRejectedError, StoreUnavailableError, now
from memory.free_space import UNLIMITED, FreeSpace, NoRoomError
from memory.listing import Page, Place, Summary, newest_first
from memory.merge import fold
from memory.prior import Coverage
from memory.record import (
    COSINE_ROUNDING,
    CREATED_AT,
    EFFORT,
    KEY,
    LATENT,
    LATENT_TYPE,
    NEIGHBOUR_FIELDS,
    OUTLINE_FIELDS,
    REWARD,
    SEARCH,
    TENANT,
    TRACE,
    check_batch,
    episode_of,
    is_id,
    neighbour_of,
    outline_of,
    payload_of,
    summary_of,
    to_float16,
)
from memory.redaction import EVERYTHING, Redaction
from memory.store import EVERYWHERE, Neighbour, Outline, StoreStats, Where

logger = logging.getLogger(__name__)

_OF_THE_SYSTEM = re.compile(r"\bos error \d+|no space left|input/output error", re.IGNORECASE)
"""What Edge says when the disk failed, which no other episode would have borne either."""

SKETCH = "sketch"
SHORTLIST = 64
"""Least number of episodes, nearest by their sketches, that are compared by their keys; else four for each
that is wanted. With 64 for 16, a scan of 100,000 sketches found what one of their keys did."""
WIDTH = 512
"""Candidates that a search keeps on its way through the graph. Of 100,000 keys, harder than real ones, 512
find 96 % of the 16 nearest in about 2 ms, 128 82 % in about 1."""

FIRST_LIMIT = 256
"""Of what is asked for near a centroid: of 20,000 episodes 3 ms, all of them 100 ms."""

INDEX_FROM = 10_000
"""Episodes without a graph from which one may be built. Below, Edge scans them, in half a millisecond."""


class EdgeStore:
    """The EpisodeStore of one space in the directory `path`. Thread-safe.

    Where the disk is full when it is opened, it stays shut until there is room.

    Raises, from every method:
        StoreUnavailableError: closed, locked by another process, or files that Edge cannot read.
    """

    def __init__(
        self,
        path: Path,
        *,
        space: str,
        length: int,
        hidden_size: int,
        room: FreeSpace = UNLIMITED,
        index_from: int = INDEX_FROM,
        redact: Redaction = EVERYTHING,
    ) -> None:
        """`room` is asked before anything is written, `redact` what of an episode may be."""
        self._room, self._redact = room, redact
        self._space = space
        self._shape = (length, hidden_size)
        self._version = 0
        self._stats: dict[str | None, tuple[int, StoreStats]] = {}
        self._region: tuple[tuple[int, Where] | None, set[Any]] = (None, set())
        """Of which version what was asked for last by its region, and the ids of what lies in that."""
        self._folder = EdgeFolder(path, Layout(hidden_size), room=room, index_from=index_from)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Store episodes; when it returns, they survive the death of the process.

        Raises:
            EpisodeRejectedError: naming the field, or with what Edge says; then nothing of the batch is
                stored.
            NoRoomError: the disk is too full; nothing is stored.
        """
        check_batch(episodes, space=self._space, length=self._shape[0], hidden_size=self._shape[1])
        if not episodes:
            return
        with self._folder.writing:
            self._room.demand(f"{len(episodes)} episodes")  # now: a copy may have taken it meanwhile
            kept, replaced = fold(self, episodes, self._redact)
            points = [_point_of(episode) for episode in kept]
            try:
                self._update(edge.UpdateOperation.upsert_points(points), len(points))
            except StoreUnavailableError as error:
                if _OF_THE_SYSTEM.search(str(error)):
                    raise
                self.count()  # raises what is wrong with the store, unless it is these episodes
                raise EpisodeRejectedError(
                    f"Qdrant Edge refuses {len(points)} episodes: {error.__cause__}"
                ) from error
            try:
                self.delete(replaced)
            except NoRoomError as error:  # the next add of the prompt looks for them again
                logger.warning(
                    "%d episodes that were merged stay beside the new ones: %s", len(replaced), error
                )

    def near(self, key: Array, *, tenant: str, k: int, floor: float) -> list[Neighbour]:
        """Return up to `k` episodes of cosine ≥ `floor`, most similar first. `key` is (d,)."""
        query, own = np.asarray(key, np.float32).tolist(), _filter(Where(tenant))
        shortlist = edge.Prefetch(
            limit=max(SHORTLIST, 4 * k),
            query=edge.Query.Nearest(query, using=SKETCH),
            filter=own,
            params=edge.SearchParams(hnsw_ef=WIDTH),
        )
        request = edge.QueryRequest(
            limit=k,
            prefetches=[shortlist],
            query=edge.Query.Nearest(query, using=KEY),
            score_threshold=floor - COSINE_ROUNDING,
            with_vector=False,
            with_payload=edge.PayloadSelector.Include(list(NEIGHBOUR_FIELDS)),
        )
        points = self._folder.call(lambda s: s.query(request))
        return [neighbour_of(str(point.id), point.payload, float(point.score)) for point in points]

    def get(self, episode_id: str) -> Episode | None:
        """Return one episode, vectors included."""
        found = self.fetch([episode_id])
        return found[0] if found else None

    def fetch(self, episode_ids: Sequence[str]) -> list[Episode]:
        """Return those of the episodes that there are, vectors included, in any order."""
        ids = [i for i in episode_ids if is_id(i)]
        return [_episode(p) for p in self._folder.call(lambda s: s.retrieve(ids, True, [KEY]))] if ids else []

    def scroll(self, *, tenant: str | None = None, batch: int = 256) -> Iterator[Episode]:
        """Yield all episodes, oldest first within a batch, vectors included."""
        where = _filter(Where(tenant))
        for records in self._pages(where, batch, with_vector=[KEY], with_payload=True):
            yield from sorted(map(_episode, records), key=lambda episode: episode.created_at)

    def outlines(self, where: Where = EVERYWHERE) -> Iterator[Outline]:
        """Yield what there is of each episode beside its vectors, tokens and texts, in any order."""
        fields = edge.PayloadSelector.Include(list(OUTLINE_FIELDS))
        for records in self._pages(self._filter(where), 256, with_vector=False, with_payload=fields):
            yield from (outline_of(str(record.id), record.payload) for record in records)

    def outlines_of(self, episode_ids: Sequence[str]) -> list[Outline]:
        """Return that of those of the episodes that there are, in any order."""
        ids = [i for i in episode_ids if is_id(i)]
        fields = edge.PayloadSelector.Include(list(OUTLINE_FIELDS))
        found = self._folder.call(lambda s: s.retrieve(ids, fields, False)) if ids else []
        return [outline_of(str(record.id), record.payload) for record in found]

    def page(self, where: Where, *, limit: int, after: Place | None = None) -> Page:
        """Return up to `limit` episodes without vectors, newest first, and where the next page begins."""
        meant = self._filter(where)

        def newest(start: datetime | None, count: int) -> list[Summary]:
            request = edge.ScrollRequest(
                limit=count,
                filter=meant,
                with_vector=False,
                with_payload=edge.PayloadSelector.Exclude([LATENT]),
                order_by=edge.OrderBy(CREATED_AT, edge.Direction.Desc, _iso(start)),
            )
            return [summary_of(str(record.id), record.payload) for record in self._scroll(request)[0]]

        return newest_first(newest, limit, after)

    def delete(self, episode_ids: Sequence[str]) -> int:
        """Delete episodes and return how many there were.

        Raises:
            NoRoomError: the disk is too full even for that; nothing is deleted.
        """
        ids = [i for i in dict.fromkeys(episode_ids) if is_id(i)]
        if not ids:
            return 0
        with self._folder.writing:
            found: list[Any] = [p.id for p in self._folder.call(lambda s: s.retrieve(ids, False, False))]
            if found:
                self._room.demand("a deletion", reserve=True)
                self._folder.note_deletion()
                self._update(edge.UpdateOperation.delete_points(found), len(found))
        return len(found)

    def count(self, *, tenant: str | None = None, since: datetime | None = None) -> int:
        """Return how many episodes there are; with `since` those created after it, and not in the future."""
        where = _filter(Where(tenant), after=since)
        return int(self._folder.call(lambda s: s.count(edge.CountRequest(exact=True, filter=where))))

    def stats(self, *, tenant: str | None = None) -> StoreStats:
        """Return counts and the reward distribution; counted again only after a write."""
        version = self._version
        known = self._stats.get(tenant)
        if known is not None and known[0] == version:
            return known[1]
        stats = StoreStats.of(self.outlines(Where(tenant)))
        self._stats[tenant] = (version, stats)
        return stats

    def compact(self) -> bool:
        """Write the files anew, without what was deleted, and return whether anything was.

        Raises:
            NoRoomError: the disk has no room for both; nothing changes.
        """
        return self._folder.compact()

    def indexed(self) -> int:
        """Return how many episodes the graph of the keys reaches; the others are scanned."""
        return self._folder.indexed()

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until no graph is being built; False when that took longer."""
        return self._folder.settle(timeout_s)

    def close(self) -> None:
        """Flush and release files. May be called again."""
        self._folder.close()

    def _update(self, operation: Any, episodes: int) -> None:
        with self._folder.writing:
            self._folder.update(operation, episodes)
            self._version += 1

    def _filter(self, where: Where) -> Any | None:
        """Return what Edge calls that."""
        fields = _filter(where)
        if where.region is None:
            return fields
        version = self._version
        known, ids = self._region
        if known != (version, where):
            ids = self._within(where.region, fields)
            self._region = ((version, where), ids)  # of a walk from page to page all ask for it
        within = edge.HasIdCondition(ids)
        return edge.Filter(must=[within, fields] if fields else [within])

    def _within(self, region: Coverage, fields: Any | None) -> set[Any]:
        """Return the ids of all episodes in a region, by exact cosines to its centroids."""
        most = int(self._folder.call(lambda s: s.count(edge.CountRequest(exact=True, filter=fields))))
        found: set[Any] = set()
        for centroid, threshold in region.balls:
            if len(found) >= most:
                break
            limit = 0
            points: Sequence[Any] = ()
            while limit < most and len(points) == limit:  # a limit takes time, whether it is reached or not
                limit = min(most, 8 * limit or FIRST_LIMIT)
                request = edge.QueryRequest(
                    limit=limit,
                    query=edge.Query.Nearest(centroid, using=KEY),
                    filter=fields,
                    params=edge.SearchParams(exact=True),
                    score_threshold=threshold - COSINE_ROUNDING,
                    with_vector=False,
                    with_payload=False,
                )
                points = self._folder.call(partial(_query, request))
            found |= {point.id for point in points}
        return found

    def _pages(
        self, where: Any, batch: int, *, with_vector: Any, with_payload: Any
    ) -> Iterator[Sequence[Any]]:
        offset: Any = None
        while True:
            request = edge.ScrollRequest(
                offset=offset, limit=batch, filter=where, with_vector=with_vector, with_payload=with_payload
            )
            records, offset = self._scroll(request)
            yield records
            if offset is None:
                return

    def _scroll(self, request: Any) -> tuple[Sequence[Any], Any]:
        page: tuple[Sequence[Any], Any] = self._folder.call(lambda s: s.scroll(request))
        return page


class Layout:
    """What a shard of keys of `hidden_size` numbers looks like."""

    def __init__(self, hidden_size: int) -> None:
        self._hidden_size = hidden_size

    def create(self, path: Path) -> None:
        """Make an empty shard in the folder `path`, which is not there yet."""
        path.mkdir()
        shard = edge.EdgeShard.create(
            str(path),
            edge.EdgeConfig(
                vectors={
                    # m=0: no graph; a few keys are looked at by id.
                    KEY: self._vectors(edge.VectorStorageDatatype.Float32, m=0),
                    SKETCH: self._vectors(edge.VectorStorageDatatype.Turbo8, m=16),
                },
                # Not cold: of a payload with a latent, 25 KB, each page would be a fault at first touch.
                payload_memory=edge.Memory.Cached,
                # Edge only indexes when asked to; then it shall whatever the size, in KiB.
                optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
            ),
        )
        for field, schema in (
            (TENANT, edge.KeywordIndexParams(is_tenant=True)),
            (REWARD, edge.PayloadSchemaType.Float),
            (CREATED_AT, edge.PayloadSchemaType.Datetime),
        ):
            shard.update(edge.UpdateOperation.create_field_index(field, schema))
        shard.flush()
        shard.close()

    def fits(self, path: Path) -> bool:
        """Return whether the shard in `path` is laid out like this, and not as earlier builds did."""
        return SKETCH in json.loads((path / "edge_config.json").read_text())["vectors"]

    def laid_out(self, record: Any) -> Any:
        """Return the point that a record tells; earlier builds kept latents as vectors, and no sketches."""
        vectors, payload = record.vector, record.payload  # each access converts all of them
        if LATENT in vectors:
            payload[LATENT] = _text(np.asarray(vectors[LATENT], LATENT_TYPE))
        return _point(record.id, vectors[KEY], payload)

    def _vectors(self, datatype: Any, m: int) -> Any:
        graph = edge.HnswIndexConfig(m=m, ef_construct=128, full_scan_threshold=10_000)
        return edge.EdgeVectorParams(
            self._hidden_size, edge.Distance.Cosine, datatype=datatype, hnsw_config=graph
        )


def _query(request: Any, shard: Any) -> Sequence[Any]:
    points: Sequence[Any] = shard.query(request)
    return points


def _point(episode_id: Any, key: list[float], payload: dict[str, Any]) -> Any:
    return edge.Point(episode_id, {KEY: key, SKETCH: key}, payload)


def _point_of(episode: Episode) -> Any:
    latent = _text(to_float16(episode.latent))
    return _point(
        episode.id, np.asarray(episode.key, np.float32).tolist(), payload_of(episode) | {LATENT: latent}
    )


def _text(latent: "np.ndarray[Any, np.dtype[np.float16]]") -> str:
    return base64.b64encode(latent.tobytes()).decode()


def _filter(where: Where, *, after: datetime | None = None) -> Any | None:
    """Return what Edge calls that; with `after` only what was created later, and not in the future."""
    must: list[Any] = [
        edge.FieldCondition(name, match=edge.MatchValue(value))
        for name, value in (
            (TENANT, where.tenant),
            (EFFORT, where.effort),
            (SEARCH, where.search),
            (TRACE, where.trace_id),
        )
        if value is not None
    ]
    if where.reward_min is not None or where.reward_max is not None:
        rewards = edge.RangeFloat(gte=where.reward_min, lte=where.reward_max)
        must.append(edge.FieldCondition(REWARD, range=rewards))
    if where.since is not None or where.until is not None:
        times = edge.RangeDateTime(gte=_iso(where.since), lt=_iso(where.until))
        must.append(edge.FieldCondition(CREATED_AT, range=times))
    if after is not None:
        times = edge.RangeDateTime(gt=_iso(after), lte=_iso(now()))
        must.append(edge.FieldCondition(CREATED_AT, range=times))
    return edge.Filter(must=must) if must else None


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _episode(point: Any) -> Episode:
    payload, key = point.payload, point.vector[KEY]
    latent = np.frombuffer(base64.b64decode(payload.pop(LATENT)), LATENT_TYPE).reshape(-1, len(key))
    return episode_of(str(point.id), payload, key, latent)
