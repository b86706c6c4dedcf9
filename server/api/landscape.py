"""GET /v1/memory/map and GET /v1/memory/clusters: what is remembered, as a map and by kinds of request."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from memory.episode import Episode
from memory.evidence import Standing
from server.api.deps import AccessDep, GatewayDep, OwnDep
from server.api.errors import refusals
from server.api.priors import RowEvidence
from server.landscape import Kind, View
from server.questions import Questions

router = APIRouter(prefix="/v1/memory", tags=["memory"])

SHOWN = 300
"""Most characters of a typical question."""
MOST_KINDS = 50
"""Kinds that are listed: those of rows of the prior, and the largest others."""

State = Literal["empty", "drawing", "ready"]


class Landscape(BaseModel):
    """How far the map is drawn."""

    state: State = Field(description="`empty`: nothing is remembered; `drawing`: ask again in some seconds.")
    updating: bool = Field(description="Whether a newer one is being drawn.")
    failure: str | None = Field(description="Why the last one could not be drawn; null: it could.")
    drawn_at: str | None
    episodes: int = Field(description="Episodes that there were when it was drawn.")
    shown: int = Field(description="How many of them are on the map and still remembered.")


class Point(BaseModel):
    """An episode on the map."""

    id: str
    x: float = Field(description="From -1 to 1, as `y`.")
    y: float
    reward: float
    cluster: int = Field(description="Number of its kind in `/v1/memory/clusters`.")


class MapRead(Landscape):
    """A map on which like requests are near each other."""

    points: list[Point]


class KindRow(RowEvidence):
    """A row of the prior, and what is known of answering such requests with it."""

    id: str


class Typical(BaseModel):
    """A question that stands for its kind."""

    id: str
    question: str | None = Field(description=f"Its first {SHOWN} characters; null: no text is kept.")


class ClusterRead(BaseModel):
    """Requests of one kind."""

    number: int
    episodes: int = Field(description="Of those on the map.")
    share: float
    typical: list[Typical] = Field(description="Those nearest to their middle.")
    standing: Standing | None = Field(description="Of the best of its rows; null: nothing is learned yet.")
    rows: list[KindRow]


class ClustersRead(Landscape):
    """Kinds of request, those that something is learned for first, then the largest."""

    clusters: list[ClusterRead]
    more: int = Field(description="Kinds that are not listed.")
    others: list[KindRow] = Field(description="Rows of the prior for what is remembered no more.")


@router.get("/map", responses=refusals())
async def map_of(gateway: GatewayDep, access: AccessDep) -> MapRead:
    """Return where each of up to 1,500 episodes is on a map, and what it is worth.

    It is drawn when it is asked for, in the background, and drawn anew when memory has changed enough.
    """
    view = await gateway.landscape.look(access.tenant)
    places = view.drawing.places if view.drawing else {}
    return MapRead(
        **_landscape(view),
        points=[
            Point(
                id=name,
                x=round(x, 4),
                y=round(y, 4),
                reward=round(view.outlines[name].reward, 4),
                cluster=number,
            )
            for name, (x, y, number) in places.items()
            if name in view.outlines
        ],
    )


@router.get("/clusters", responses=refusals())
async def clusters(gateway: GatewayDep, access: AccessDep, own: OwnDep) -> ClustersRead:
    """Return what kinds of request are remembered, and what is known of answering each."""
    view = await gateway.landscape.look(access.tenant)
    drawing = view.drawing
    evidence = _evidence(own.prior.summary()["rows"])
    kinds = list(enumerate(drawing.kinds)) if drawing else []
    kinds.sort(key=lambda one: not one[1].rows)  # within each they stay in order of size
    listed = kinds[:MOST_KINDS]
    ids = [name for _, kind in listed for name in kind.typical]
    episodes = await gateway.lookups.call(lambda store: store.fetch(ids))
    said = await asyncio.to_thread(_questions, episodes, gateway.questions)
    drawn = len(drawing.places) if drawing else 0
    return ClustersRead(
        **_landscape(view),
        clusters=[
            _cluster(number, kind, drawn, said, [evidence[row] for row in kind.rows if row in evidence])
            for number, kind in listed
            if any(name in said for name in kind.typical)
        ],
        more=len(kinds) - len(listed),
        others=[evidence[row] for row in (drawing.strangers if drawing else ()) if row in evidence],
    )


def _questions(episodes: Sequence[Episode], questions: Questions) -> dict[str, str | None]:
    """Return what was asked in episodes, by their ids; a thread's work where prompts are long."""
    return {one.id: questions.of(one.prompt_text, one.prompt_token_ids)[:SHOWN] or None for one in episodes}


def _landscape(view: View) -> dict[str, object]:
    drawing = view.drawing
    state: State = "ready" if drawing else "drawing" if view.count else "empty"
    return {
        "state": state,
        "updating": view.updating,
        "failure": view.failure,
        "drawn_at": drawing.drawn_at.isoformat() if drawing else None,
        "episodes": drawing.episodes if drawing else 0,
        "shown": len(view.outlines),
    }


def _evidence(rows: dict[str, dict[str, object]]) -> dict[str, KindRow]:
    return {name: KindRow.model_validate({"id": name, **weighed}) for name, weighed in rows.items()}


def _cluster(
    number: int, kind: Kind, drawn: int, said: dict[str, str | None], rows: list[KindRow]
) -> ClusterRead:
    standings = {row.standing for row in rows}
    order: tuple[Standing, ...] = ("serves", "on trial", "retired")
    return ClusterRead(
        number=number,
        episodes=kind.episodes,
        share=kind.episodes / drawn,
        typical=[Typical(id=name, question=said[name]) for name in kind.typical if name in said],
        standing=next((standing for standing in order if standing in standings), None),
        rows=rows,
    )
