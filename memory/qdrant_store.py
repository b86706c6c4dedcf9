"""Episodes on a Qdrant server.

Owns one collection, named after the space. Knows nothing of Qdrant Edge (`memory/edge_store.py`).
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from memory.episode import Array, Episode, EpisodeRejectedError, StoreUnavailableError, now
from memory.listing import Page, Place, Summary, newest_first
from memory.merge import fold
from memory.record import (
    COSINE_ROUNDING,
    CREATED_AT,
    EFFORT,
    KEY,
    LATENT,
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
    vectors_of,
)
from memory.redaction import EVERYTHING, Redaction
from memory.store import EVERYWHERE, Neighbour, Outline, StoreStats, Where

T = TypeVar("T")

PREFIX = "latentevolve-"
"""Of the names of collections."""
TIMEOUT_S = 10
"""Longest wait for one answer of the server."""
REQUEST_BYTES = 8 * 2**20
"""About what one request writes, unless one episode takes more: a server takes 32 MiB unless told otherwise,
and has `TIMEOUT_S` for it."""
_NUMBER_BYTES = 20
"""Of a float as JSON."""
REFUSALS = frozenset({400, 413, 422})
"""Statuses that asking again does not change: malformed, too large, not valid."""


def connect(url: str, api_key: str | None = None) -> QdrantClient:
    """Return a client of the server at `url`; nothing is sent before its first call."""
    # The compatibility check would connect here and only warn when it cannot.
    return QdrantClient(url=url, api_key=api_key, timeout=TIMEOUT_S, check_compatibility=False)


def spaces_of(url: str, api_key: str | None = None) -> set[str]:
    """Return ids of the spaces that have a collection on the server at `url`.

    Raises:
        StoreUnavailableError: the server does not answer.
    """
    try:
        with closing(connect(url, api_key)) as client:
            names = [collection.name for collection in client.get_collections().collections]
    except Exception as exc:  # as in QdrantStore._call
        raise StoreUnavailableError(f"the Qdrant server at {url} cannot be reached: {exc}") from exc
    return {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}


class QdrantStore:
    """The EpisodeStore of one space in the collection `latentevolve-<space>`.

    Thread-safe when the client is: one of a server is, qdrant-client's local mode is not. The store
    closes its client.

    Raises, from every method:
        StoreUnavailableError: closed, the server does not answer, or it refuses.
    """

    def __init__(
        self,
        client: QdrantClient,
        *,
        space: str,
        length: int,
        hidden_size: int,
        redact: Redaction = EVERYTHING,
    ) -> None:
        """`redact` says what of an episode may be written."""
        self._client, self._redact = client, redact
        self._space = space
        self._shape = (length, hidden_size)
        self._name = PREFIX + space
        self._call(self._prepare)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Store episodes; when it returns, the server has applied them.

        Raises:
            EpisodeRejectedError: naming the field, then nothing of the batch is stored; or with what the
                server says, then some of it may be.
        """
        check_batch(episodes, space=self._space, length=self._shape[0], hidden_size=self._shape[1])
        if not episodes:
            return
        kept, replaced = fold(self, episodes, self._redact)
        for points in self._requests(kept):
            self._write(points)
        self.delete(replaced)

    def _write(self, points: list[models.PointStruct]) -> None:
        try:
            self._call(lambda c: c.upsert(self._name, points, wait=True))
        except StoreUnavailableError as error:
            refused = error.__cause__
            if isinstance(refused, UnexpectedResponse) and refused.status_code in REFUSALS:
                raise EpisodeRejectedError(
                    f"the Qdrant server refuses {len(points)} episodes: {refused}"
                ) from error
            raise

    def _requests(self, episodes: Sequence[Episode]) -> Iterator[list[models.PointStruct]]:
        """Yield episodes as points, as many at once as one request may write."""
        vectors = _NUMBER_BYTES * (self._shape[0] + 1) * self._shape[1]
        points: list[models.PointStruct] = []
        size = 0
        for episode in episodes:
            payload = payload_of(episode)
            each = vectors + len(json.dumps(payload))
            if points and size + each > REQUEST_BYTES:
                yield points
                points, size = [], 0
            points.append(models.PointStruct(id=episode.id, vector=vectors_of(episode), payload=payload))
            size += each
        if points:
            yield points

    def near(self, key: Array, *, tenant: str, k: int, floor: float) -> list[Neighbour]:
        """Return up to `k` episodes of cosine ≥ `floor`, most similar first. `key` is (d,)."""
        query = np.asarray(key, np.float32).tolist()
        answer = self._call(
            lambda c: c.query_points(
                self._name,
                query=query,
                using=KEY,
                limit=k,
                query_filter=_filter(Where(tenant)),
                score_threshold=floor - COSINE_ROUNDING,
                with_vectors=False,
                with_payload=list(NEIGHBOUR_FIELDS),
            )
        )
        return [neighbour_of(str(p.id), p.payload or {}, float(p.score)) for p in answer.points]

    def get(self, episode_id: str) -> Episode | None:
        """Return one episode, vectors included."""
        found = self.fetch([episode_id])
        return found[0] if found else None

    def fetch(self, episode_ids: Sequence[str]) -> list[Episode]:
        """Return those of the episodes that there are, vectors included, in any order."""
        return [_episode(point) for point in self._retrieve(episode_ids, payload=True, vectors=True)]

    def scroll(self, *, tenant: str | None = None, batch: int = 256) -> Iterator[Episode]:
        """Yield all episodes, oldest first within a batch, vectors included."""
        where = _filter(Where(tenant))
        for records in self._pages(where, batch, with_vectors=True, with_payload=True):
            yield from sorted(map(_episode, records), key=lambda episode: episode.created_at)

    def outlines(self, where: Where = EVERYWHERE) -> Iterator[Outline]:
        """Yield what there is of each episode beside its vectors, tokens and texts, in any order."""
        fields = list(OUTLINE_FIELDS)
        for records in self._pages(self._filter(where), 1024, with_vectors=False, with_payload=fields):
            yield from (outline_of(str(record.id), record.payload or {}) for record in records)

    def outlines_of(self, episode_ids: Sequence[str]) -> list[Outline]:
        """Return that of those of the episodes that there are, in any order."""
        found = self._retrieve(episode_ids, payload=list(OUTLINE_FIELDS), vectors=False)
        return [outline_of(str(record.id), record.payload or {}) for record in found]

    def page(self, where: Where, *, limit: int, after: Place | None = None) -> Page:
        """Return up to `limit` episodes without vectors, newest first, and where the next page begins."""
        meant = self._filter(where)

        def newest(start: datetime | None, count: int) -> list[Summary]:
            order = models.OrderBy(key=CREATED_AT, direction=models.Direction.DESC, start_from=start)
            records, _ = self._call(
                lambda c: c.scroll(self._name, meant, limit=count, order_by=order, with_payload=True)
            )
            return [summary_of(str(record.id), record.payload or {}) for record in records]

        return newest_first(newest, limit, after)

    def delete(self, episode_ids: Sequence[str]) -> int:
        """Delete episodes and return how many there were."""
        wanted = list(dict.fromkeys(episode_ids))
        found = [str(point.id) for point in self._retrieve(wanted, payload=False, vectors=False)]
        if found:
            self._call(lambda c: c.delete(self._name, models.PointIdsList(points=list(found)), wait=True))
        return len(found)

    def count(self, *, tenant: str | None = None, since: datetime | None = None) -> int:
        """Return how many episodes there are; with `since` those created after it, and not in the future."""
        where = _filter(Where(tenant), after=since)
        return int(self._call(lambda c: c.count(self._name, count_filter=where, exact=True)).count)

    def stats(self, *, tenant: str | None = None) -> StoreStats:
        """Return counts and the reward distribution; reads the outlines of all episodes."""
        return StoreStats.of(self.outlines(Where(tenant)))

    def compact(self) -> bool:
        """Return False: the server drops by itself what was deleted, once enough of a segment was."""
        return False

    def close(self) -> None:
        """Close the client."""
        self._call(lambda c: c.close())

    def _prepare(self, client: QdrantClient) -> None:
        hidden_size = self._shape[1]
        if not client.collection_exists(self._name):
            try:
                self._create(client, hidden_size)
            except Exception:
                # Another gateway may have made it since the question.
                if not client.collection_exists(self._name):
                    raise
        vectors = client.get_collection(self._name).config.params.vectors
        sizes = {n: v.size for n, v in vectors.items()} if isinstance(vectors, dict) else {}
        if sizes != {KEY: hidden_size, LATENT: hidden_size}:
            raise StoreUnavailableError(
                f"collection {self._name} keeps vectors of {sizes}, expected two of {hidden_size}"
            )
        with warnings.catch_warnings():
            # qdrant-client's local mode warns that it does without.
            warnings.filterwarnings("ignore", message="Payload indexes have no effect")
            for field, schema in (
                (TENANT, models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)),
                (REWARD, models.PayloadSchemaType.FLOAT),
                (CREATED_AT, models.PayloadSchemaType.DATETIME),
            ):
                client.create_payload_index(self._name, field, schema, wait=True)

    def _create(self, client: QdrantClient, hidden_size: int) -> None:
        client.create_collection(
            self._name,
            vectors_config={
                KEY: models.VectorParams(size=hidden_size, distance=models.Distance.COSINE),
                # Dot: cosine would normalise the rows. m=0: no graph, latents are only ever read by id.
                LATENT: models.VectorParams(
                    size=hidden_size,
                    distance=models.Distance.DOT,
                    datatype=models.Datatype.FLOAT16,
                    on_disk=True,
                    multivector_config=models.MultiVectorConfig(
                        comparator=models.MultiVectorComparator.MAX_SIM
                    ),
                    hnsw_config=models.HnswConfigDiff(m=0),
                ),
            },
        )

    def _retrieve(
        self, episode_ids: Sequence[str], *, payload: bool | list[str], vectors: bool
    ) -> Sequence[Any]:
        ids = [i for i in episode_ids if is_id(i)]
        if not ids:
            return []
        return self._call(lambda c: c.retrieve(self._name, ids, with_payload=payload, with_vectors=vectors))

    def _filter(self, where: Where) -> models.Filter | None:
        """Return what Qdrant calls that. A region is asked for whole, by exact cosines to its centroids."""
        fields = _filter(where)
        if where.region is None:
            return fields
        most = int(self._call(lambda c: c.count(self._name, count_filter=fields, exact=True)).count)
        found: set[Any] = set()
        for centroid, threshold in where.region.balls if most else ():
            near = partial(
                QdrantClient.query_points,
                collection_name=self._name,
                query=centroid,
                using=KEY,
                limit=most,
                query_filter=fields,
                search_params=models.SearchParams(exact=True),
                score_threshold=threshold - COSINE_ROUNDING,
                with_vectors=False,
                with_payload=False,
            )
            found |= {point.id for point in self._call(near).points}
        within = models.HasIdCondition(has_id=list(found))
        return models.Filter(must=[within, fields] if fields else [within])

    def _pages(
        self, where: models.Filter | None, batch: int, *, with_vectors: bool, with_payload: bool | list[str]
    ) -> Iterator[Sequence[Any]]:
        offset: Any = None
        while True:
            page = partial(
                QdrantClient.scroll,
                collection_name=self._name,
                scroll_filter=where,
                limit=batch,
                offset=offset,
                with_payload=with_payload,
                with_vectors=with_vectors,
            )
            records, offset = self._call(page)
            yield records
            if offset is None:
                return

    def _call(self, action: Callable[[QdrantClient], T]) -> T:
        try:
            return action(self._client)
        except StoreUnavailableError:
            raise
        # Refused connections, timeouts, HTTP errors and a closed client share no base class.
        except Exception as exc:
            raise StoreUnavailableError(f"collection {self._name} cannot be reached: {exc}") from exc


def _filter(where: Where, *, after: datetime | None = None) -> models.Filter | None:
    """Return what Qdrant calls that; with `after` only what was created later, and not in the future."""
    must: list[models.Condition] = [
        models.FieldCondition(key=name, match=models.MatchValue(value=value))
        for name, value in (
            (TENANT, where.tenant),
            (EFFORT, where.effort),
            (SEARCH, where.search),
            (TRACE, where.trace_id),
        )
        if value is not None
    ]
    if where.reward_min is not None or where.reward_max is not None:
        rewards = models.Range(gte=where.reward_min, lte=where.reward_max)
        must.append(models.FieldCondition(key=REWARD, range=rewards))
    if where.since is not None or where.until is not None:
        times = models.DatetimeRange(gte=where.since, lt=where.until)
        must.append(models.FieldCondition(key=CREATED_AT, range=times))
    if after is not None:
        times = models.DatetimeRange(gt=after, lte=now())
        must.append(models.FieldCondition(key=CREATED_AT, range=times))
    return models.Filter(must=must) if must else None


def _episode(point: Any) -> Episode:
    return episode_of(str(point.id), point.payload, point.vector[KEY], point.vector[LATENT])
