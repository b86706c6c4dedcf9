"""Routes under /v1/memory: counting, listing, searching, reading and forgetting what is remembered."""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from memory.listing import Summary
from memory.prior import Coverage
from memory.store import Where
from server.api.deps import AccessDep, GatewayDep, OwnDep, place
from server.api.errors import refusals
from server.api.priors import RowEvidence
from server.errors import InvalidRequestError, NotFoundError
from server.forget import Forgotten, forget, forget_one
from server.gateway import Gateway
from server.search import like_episode, like_text
from server.tenants import Parts

router = APIRouter(prefix="/v1/memory", tags=["memory"])

_NAMED = 16
"""Most rows that an error names."""


def _dated(time: datetime) -> datetime:
    if not 1970 <= time.year < 10_000 - 1:
        raise ValueError("a year from 1970 to 9998")
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _written(time: object) -> object:
    # A number would be taken for seconds, and 15 deletes everything.
    if not isinstance(time, str) or not re.match(r"\d{4}-", time):
        raise ValueError("ISO 8601, such as 2026-03-01 or 2026-03-01T12:00:00Z")
    return time


Time = Annotated[datetime, BeforeValidator(_written), AfterValidator(_dated)]
Share = Annotated[float, Field(ge=0, le=1)]
Stamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Filter(BaseModel):
    """Which episodes: those that are all of this. What is not given asks nothing."""

    model_config = ConfigDict(extra="forbid")  # a misspelt filter would delete too much

    reward_min: Share | None = Field(None, description="Least reward.")
    reward_max: Share | None = Field(None, description="Highest reward.")
    effort: str | None = Field(None, description="Effort of the request it was found at.")
    search: str | None = Field(None, description="Search that it was found by; `none`: exploring, choices.")
    since: Time | None = Field(None, description="Created then or later; ISO 8601, without a zone UTC.")
    until: Time | None = Field(None, description="Created before.")
    cluster: str | None = Field(
        None, description="Row of the active prior that covers them, such as `v3/0` in `/v1/memory/stats`."
    )

    def where(self, tenant: str, own: Parts) -> Where:
        """Return the filter as stores take it, of a tenant and what it has of its own.

        Raises:
            InvalidRequestError: the active prior has no such row.
        """
        asked = {name: getattr(self, name) for name in Filter.model_fields if name != "cluster"}
        region = None if self.cluster is None else _region(self.cluster, own)
        return Where(tenant, **asked, region=region)


class Listing(Filter):
    """Which page of which episodes."""

    limit: int = Field(20, ge=1, le=100, description="Most episodes of one page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class Forgetting(Filter):
    """Which episodes go."""

    all: bool = Field(False, description="All of them; needed where no filter is given.")


class EpisodeSummary(BaseModel):
    """An episode without its vectors and tokens."""

    id: str
    space: str
    tenant: str
    reward: float
    plain_reward: float
    signals: dict[str, float]
    latent_earned: bool
    start_lift: float | None
    choices: list[str]
    choice_log_probabilities: list[float]
    held_log_probabilities: list[float]
    max_tokens: int | None
    prompt_text: str
    question: str = Field(description="The last user message of the prompt; empty: no text is kept.")
    answer_text: str
    effort: str
    search: str
    prior_version: str | None
    trace_id: str | None
    created_at: Stamp
    seen: int
    seen_at: Stamp


class EpisodeRead(EpisodeSummary):
    """An episode without its vectors."""

    prompt_token_ids: list[int]
    answer_token_ids: list[int]


class EpisodePage(BaseModel):
    """Some episodes, newest first."""

    object: str = "list"
    data: list[EpisodeSummary]
    has_more: bool
    next_cursor: str | None = Field(description="`cursor` of the next page; null: there is none.")


class Search(BaseModel):
    """What is looked for: what is like a text, or like an episode."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        None, description="A user's message; it gets the key of a request that says just that."
    )
    id: str | None = Field(None, description="An episode, whose neighbours are looked for.")
    k: int = Field(10, ge=1, le=100, description="Most episodes.")
    floor: float = Field(-1.0, ge=-1, le=1, description="Least cosine similarity.")


class Found(BaseModel):
    """An episode that was looked for."""

    similarity: float = Field(description="Cosine of its key to what was looked for.")
    episode: EpisodeSummary


class FoundList(BaseModel):
    """What was found, most similar first."""

    object: str = "list"
    data: list[Found]


class TouchedPrior(BaseModel):
    """A version that was trained on what is forgotten."""

    version: str
    rows: list[str] = Field(description="Of its rows, those that were.")
    active: bool


class Erasure(BaseModel):
    """What was forgotten, and where it has left something."""

    deleted: int
    priors: list[TouchedPrior] = Field(description="Versions that were trained on it.")
    night: str | None = Field(description="The open night; its snapshot may hold it until that ends.")
    next: str | None = Field(description="What becomes of these priors; null: there are none.")


def erasure_of(forgotten: Forgotten) -> Erasure:
    """Return what was forgotten as routes say it."""
    priors = [TouchedPrior(version=one.version, rows=one.rows, active=one.active) for one in forgotten.priors]
    return Erasure(
        deleted=forgotten.deleted,
        priors=priors,
        night=forgotten.night,
        next=RETRAIN if priors else None,
    )


class Compacted(BaseModel):
    """Whether there was anything to do."""

    compacted: bool


class SpaceStats(BaseModel):
    """What is remembered in one space."""

    episodes: int
    seen: int = Field(description="How often their prompts came to be remembered.")
    reward_mean: float | None
    reward_histogram: list[int] = Field(description="Episodes by tenths of the reward.")
    oldest: Stamp | None
    newest: Stamp | None


class PriorStats(BaseModel):
    """What serves."""

    version: str | None
    pinned: bool
    rows: dict[str, RowEvidence]


class RequestStats(BaseModel):
    """Answers since the start."""

    total: int
    steered: int
    by_mode: dict[str, int]


class ExploringStats(BaseModel):
    """What is explored."""

    waiting: int
    running: int
    tokens_last_hour: int


class MemoryStats(BaseModel):
    """What is remembered, what serves, and what happened since the start."""

    space: str
    spaces: dict[str, SpaceStats]
    prior: PriorStats
    requests: RequestStats
    hit_rate: float | None = Field(description="Of lookups, the share that recalled something.")
    dropped_writes: int
    refused_writes: int
    feedback: dict[str, int]
    exploring: ExploringStats
    pending_writes: int
    expired_episodes: int
    evicted_episodes: int
    lost_traces: int


RETRAIN = (
    "these rows serve no more, unless an operator has pinned their version: POST /v1/priors/release; a night "
    "without them is due within an hour, if one is active (GET /v1/schedule), or at once: POST "
    "/v1/consolidations"
)


@router.get("/stats", responses=refusals())
async def stats(gateway: GatewayDep, access: AccessDep, own: OwnDep) -> MemoryStats:
    """Return counts and rewards of the served space, the hit rate, and the evidence about rows."""
    tenant = access.tenant
    found = await gateway.statistics.call(lambda store: store.stats(tenant=tenant))
    here = SpaceStats(
        episodes=found.episodes,
        seen=found.seen,
        reward_mean=found.reward_mean,
        reward_histogram=list(found.reward_histogram),
        oldest=found.oldest.isoformat() if found.oldest else None,
        newest=found.newest.isoformat() if found.newest else None,
    )
    return MemoryStats(
        space=gateway.space,
        spaces={gateway.space: here},
        prior=PriorStats.model_validate(own.prior.summary()),
        **gateway.metrics.summary(tenant),
        exploring=ExploringStats(**gateway.steering.explorer.summary(tenant)),
        pending_writes=gateway.remember.pending_of(tenant),
        expired_episodes=gateway.upkeep.expired[tenant],
        evicted_episodes=gateway.upkeep.evicted[tenant],
        lost_traces=gateway.traces.lost,
    )


@router.get("/episodes", responses=refusals())
async def episodes(
    gateway: GatewayDep, access: AccessDep, own: OwnDep, asked: Annotated[Listing, Query()]
) -> EpisodePage:
    """Return a page of episodes, newest first, without vectors and tokens.

    Going from page to page shows each episode once that is there all the time, whatever comes and goes.
    """
    where = asked.where(access.tenant, own)
    after = None if asked.cursor is None else place(asked.cursor)
    calls = gateway.lookups if where.region is None else gateway.statistics  # which may take longer
    page = await calls.call(lambda store: store.page(where, limit=asked.limit, after=after))
    return EpisodePage(
        data=await asyncio.to_thread(_summaries, gateway, page.episodes),
        has_more=page.next is not None,
        next_cursor=page.next.cursor if page.next else None,
    )


@router.delete("/episodes", responses=refusals(507))
async def delete_episodes(
    gateway: GatewayDep, access: AccessDep, own: OwnDep, asked: Annotated[Forgetting, Query()]
) -> Erasure:
    """Forget the episodes that a filter names, or all; those of requests that come later stay."""
    filtered = any(getattr(asked, name) is not None for name in Filter.model_fields)
    if filtered == asked.all:
        raise InvalidRequestError("name a filter, such as reward_max=0.3, or else all=true", "all")
    return erasure_of(await forget(gateway, access.tenant, asked.where(access.tenant, own)))


@router.get("/episodes/{episode_id}", responses=refusals(404))
async def episode(gateway: GatewayDep, access: AccessDep, episode_id: str) -> EpisodeRead:
    """Return one episode without its vectors."""
    name = _name(episode_id)
    found = await gateway.lookups.call(lambda store: store.get(name))
    if found is None or found.tenant != access.tenant:
        raise _unknown(name)
    return EpisodeRead.model_validate(_said(gateway, found.summary()))


@router.delete("/episodes/{episode_id}", responses=refusals(404, 507))
async def delete_episode(gateway: GatewayDep, access: AccessDep, episode_id: str) -> Erasure:
    """Forget one episode: it is recalled no more, and later nights do not see it."""
    name = _name(episode_id)
    forgotten = await forget_one(gateway, access.tenant, name)
    if not forgotten.deleted:
        raise _unknown(name)
    return erasure_of(forgotten)


@router.post("/compact", responses=refusals(507))
async def compact(gateway: GatewayDep) -> Compacted:
    """Write the store's files anew, without what was deleted, now instead of within a day."""
    return Compacted(compacted=await asyncio.to_thread(gateway.upkeep.compact))


@router.post("/search", responses=refusals(404))
async def search(gateway: GatewayDep, access: AccessDep, asked: Search) -> FoundList:
    """Return the episodes most like a text, or like an episode, whatever their latents are worth."""
    if asked.text is not None and asked.id is None:
        found = await like_text(gateway, access.tenant, asked.text, asked.k, asked.floor)
    elif asked.id is not None and asked.text is None:
        found = await like_episode(gateway, access.tenant, _name(asked.id, "id"), asked.k, asked.floor)
    else:
        raise InvalidRequestError("give a text, or else the id of an episode", "text")
    episodes = await asyncio.to_thread(_summaries, gateway, [one.episode.summary() for one in found])
    return FoundList(
        data=[
            Found(similarity=one.similarity, episode=episode)
            for one, episode in zip(found, episodes, strict=True)
        ]
    )


def _summaries(gateway: Gateway, summaries: Sequence[Summary]) -> list[EpisodeSummary]:
    """Return episodes as lists show them; a thread's work where prompts are long."""
    return [EpisodeSummary.model_validate(_said(gateway, one)) for one in summaries]


def _said(gateway: Gateway, summary: Summary) -> Summary:
    return summary | {"question": gateway.questions.of(summary["prompt_text"], summary["prompt_token_ids"])}


def _region(cluster: str, own: Parts) -> Coverage:
    serving = own.prior.serving()
    rows = serving.whole.rows if serving else ()
    for row in rows:
        if row.id == cluster:
            return row.coverage
    known = ", ".join(row.id for row in rows[:_NAMED])
    raise InvalidRequestError(f"the active prior has no row {cluster!a}; it has {known or 'none'}", "cluster")


def _name(episode_id: str, param: str = "episode_id") -> str:
    try:
        return str(UUID(episode_id))
    except ValueError:
        raise NotFoundError("ids of episodes are UUIDs, as in x-latent-episodes", param) from None


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"no episode {name} in this space", "episode_id")
