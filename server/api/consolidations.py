"""Routes under /v1/consolidations: starting nights, watching them, and ending them early."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus

from memory.episode import LatentMemoryError
from memory.night import NightRecord, Phase, State, Trigger
from server.api.deps import OwnDep, place
from server.api.errors import refusals
from server.errors import NotFoundError
from server.tenants import Parts

router = APIRouter(prefix="/v1/consolidations", tags=["consolidations"])

LOOK_S = 0.5
"""Between two looks at a night whose events are watched."""
END_S = 4 * LOOK_S
"""How long events may take to end when the server does."""


class StartNight(BaseModel):
    """Body of POST /v1/consolidations; may be left out."""

    model_config = ConfigDict(extra="forbid")

    trigger: Literal["api", "cli", "schedule"] = "api"


class Consolidation(BaseModel):
    """The record of a night. Times are in UTC."""

    id: str
    space: str
    trigger: Trigger
    created_at: datetime
    updated_at: datetime = Field(description="Last sign of life of whoever works on it.")
    scheduled_for: datetime | None = Field(description="The time of the schedule that it was started for.")
    state: State
    phase: Phase
    done: int = Field(description="Steps of the phase that are done.")
    total: int = Field(description="Steps of the phase; 0: not known.")
    message: str
    episodes: int = Field(description="Episodes of its snapshot.")
    version: str | None = Field(description="The prior that it published.")
    parent: str | None = Field(description="The prior that was active when it began.")
    evidence: dict[str, Any] | None = Field(description="`clusters`: what it found of each new row.")
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, record: NightRecord) -> "Consolidation":
        """Return a record as routes show it."""
        return cls(**vars(record))


class Listing(BaseModel):
    """Which page of the nights."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100, description="Most nights of one page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class ConsolidationPage(BaseModel):
    """Some nights, newest first."""

    object: str = "list"
    data: list[Consolidation]
    has_more: bool
    next_cursor: str | None = Field(description="`cursor` of the next page; null: there is none.")


@router.post(
    "",
    status_code=202,
    responses=refusals(409, 507),
)
async def start(own: OwnDep, body: StartNight | None = None) -> Consolidation:
    """Queue a night and return its record; `skipped` when there is too little to consolidate."""
    return Consolidation.of(await own.nights.start((body or StartNight()).trigger))


@router.get("", responses=refusals())
async def nights(own: OwnDep, asked: Annotated[Listing, Query()]) -> ConsolidationPage:
    """Return a page of nights, newest first."""
    page = await own.nights.page(asked.limit, None if asked.cursor is None else place(asked.cursor))
    return ConsolidationPage(
        data=[Consolidation.of(one) for one in page.nights],
        has_more=page.next is not None,
        next_cursor=page.next.cursor if page.next else None,
    )


@router.get("/{night_id}", responses=refusals(404))
async def night(own: OwnDep, night_id: str) -> Consolidation:
    """Return one night's record, which its worker keeps up to date."""
    return Consolidation.of(await _record(own, night_id))


@router.post(
    "/{night_id}/cancel",
    responses=refusals(404, 409, 507),
)
async def cancel(own: OwnDep, night_id: str) -> Consolidation:
    """End a night that is queued or running; its worker stops within seconds, and nothing is published."""
    record = await _record(own, night_id)
    return Consolidation.of(await own.nights.cancel(record.id))


@router.get(
    "/{night_id}/events",
    response_class=EventSourceResponse,
    responses={
        **refusals(404),
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "`progress` whenever the record changes, the present one first, and `end` with "
            "the last one; the data of each is the record as JSON.",
        },
        204: {"description": "`Last-Event-ID` is that of the `end`: there is nothing more to wait for."},
    },
)
async def events(
    own: OwnDep, night_id: str, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Watch a night as server-sent events, until it ends."""
    record = await _record(own, night_id)
    if record.ended and last_event_id == _event_id(record):
        return Response(status_code=204)  # so that browsers do not connect again
    return stream(own, record)


def stream(own: Parts, record: NightRecord) -> EventSourceResponse:
    """Return the events of a night; they end in order when the server does."""
    return EventSourceResponse(watched(own, record), shutdown_grace_period=END_S)


async def watched(own: Parts, record: NightRecord) -> AsyncIterator[ServerSentEvent]:
    """Yield a night's record whenever it changes, first as it is, at last as it ended.

    The record in the state is looked at, so it does not matter whose worker writes it, and through which
    gateway it is watched. While the state does not answer, nothing comes.
    """
    told: dict[str, Any] | None = None
    while True:
        # A sign of life is no news.
        news = {name: value for name, value in vars(record).items() if name != "updated_at"}
        if news != told:
            told = news
            yield ServerSentEvent(
                Consolidation.of(record).model_dump_json(),
                event="end" if record.ended else "progress",
                id=_event_id(record),
            )
        if record.ended:
            return
        await asyncio.sleep(LOOK_S)
        if AppStatus.should_exit:
            return
        try:
            record = await own.nights.get(record.id) or record
        except LatentMemoryError:
            continue


def _event_id(record: NightRecord) -> str:
    return record.updated_at.isoformat()


async def _record(own: Parts, night_id: str) -> NightRecord:
    try:
        name = str(UUID(night_id))  # ids name files, so nothing else gets through
    except ValueError:
        raise NotFoundError("ids of consolidations are UUIDs", "night_id") from None
    record = await own.nights.get(name)
    if record is None:
        raise NotFoundError(f"no consolidation {name}", "night_id")
    return record
