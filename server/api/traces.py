"""Routes under /v1/latent: what steering did for one request, for the last ones, and over time."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from memory.episode import now
from memory.experiment import Arm
from memory.timeline import Step, Timeline, Window, timeline
from server.api.deps import AccessDep, GatewayDep, trace_of
from server.api.errors import refusals
from server.api.memory import Erasure, erasure_of
from server.errors import NotFoundError
from server.forget import forget_request
from server.questions import Questions
from server.steering.traces import ListedTrace

router = APIRouter(prefix="/v1/latent", tags=["latent"])

SHOWN = 500
"""Most characters of a question or an answer in a list."""


class TraceSummary(BaseModel):
    """One request in a list."""

    id: str
    created_at: str
    effort: str
    mode: str
    reason: str
    prior_version: str | None
    reward_before: float | None
    reward_after: float | None
    search_tokens: int = Field(description="Tokens that searching generated while the client waited.")
    seconds: float | None = Field(description="From arrival until steering had decided.")
    remembered: str
    episode_id: str | None
    question: str | None = Field(
        description=f"The last user message, its first {SHOWN} characters; null: no text is kept."
    )
    answer: str | None = Field(description="The same of the answer.")
    rating: float | None = Field(description="What was said of the answer last, from 0 to 1.")


class TracePage(BaseModel):
    """Some requests, newest first."""

    object: str = "list"
    data: list[TraceSummary]
    has_more: bool
    next_cursor: str | None = Field(description="`cursor` of the next page; null: there is none.")


class StepRead(BaseModel):
    """What happened in one step of time, or in all of them."""

    requests: int
    by_effort: dict[str, int]
    by_mode: dict[str, int]
    learned: int = Field(description="Requests that were answered in one pass with what was learned.")
    steered: int = Field(description="Requests whose answer came of what was learned or searched for.")
    searched: int = Field(description="Requests for which both rewards are known.")
    reward_before: float | None = Field(description="Mean reward of their unsteered answers.")
    reward_after: float | None = Field(description="Mean reward of the answers that were given instead.")
    searches: int
    tokens_per_search: float | None
    measured: int = Field(description="Prompts on which rows of a prior were compared with going without.")
    difference: float | None = Field(description="Mean difference of these outcomes, from -1 to 1.")
    rated_steered: int
    rating_steered: float | None = Field(description="Mean rating of steered answers.")
    rated_plain: int
    rating_plain: float | None
    tokens_saved: float | None = Field(
        description="Answers that came of what was learned in one pass, times the mean tokens of a search."
    )


class TimedStep(StepRead):
    """What happened from a moment on."""

    start: str


class TimelineRead(BaseModel):
    """What happened in a window of time."""

    window: Window
    step_s: float
    total: StepRead
    steps: list[TimedStep] = Field(description="Oldest first; the last one is not over.")


@router.get("/timeline", responses=refusals())
async def timeline_of(gateway: GatewayDep, access: AccessDep, window: Window = "day") -> TimelineRead:
    """Return requests, outcomes and ratings of the last hour, day, week or month, step by step."""
    found: Timeline = await asyncio.to_thread(
        timeline, gateway.state, gateway.space, access.tenant, window, now()
    )
    total = found.whole
    per_search = total.search_tokens.value
    return TimelineRead(
        window=window,
        step_s=found.step_s,
        total=StepRead(**_step(total, per_search)),
        steps=[
            TimedStep(start=start.isoformat(), **_step(step, per_search))
            for start, step in found.steps.items()
        ],
    )


@router.get("/traces", responses=refusals())
async def traces(
    gateway: GatewayDep,
    access: AccessDep,
    limit: Annotated[int, Query(ge=1, le=100, description="Most traces of one page.")] = 20,
    cursor: Annotated[
        int | None, Query(ge=0, le=2**62, description="`next_cursor` of the page before.")
    ] = None,
) -> TracePage:
    """Return the last requests, newest first, with their texts where these are kept."""
    found = await gateway.traces.recent(gateway.space, limit + 1, cursor, access.tenant)
    page = found[:limit]
    more = len(found) > limit
    return TracePage(
        data=await asyncio.to_thread(_summaries, page, gateway.questions),
        has_more=more,
        next_cursor=str(page[-1].number) if more else None,
    )


class TraceOptions(BaseModel):
    """Every option as it was used, the server's setting where the request named none."""

    search: str | None
    k: int
    floor: float | None
    steps: int
    budget_tokens: int | None
    deadline_s: float
    prior: str | None
    store: bool
    explore: bool
    seed: int | None


class TracedEpisode(BaseModel):
    """A recalled episode."""

    id: str
    similarity: float


class TracedStep(BaseModel):
    """One step of a search."""

    step: int
    rewards: list[float]
    best: float


class TracedUsage(BaseModel):
    """Tokens that searching took."""

    prompt_tokens: int
    generated_tokens: int
    forward_tokens: int


class TracedLatent(BaseModel):
    """What stood in front of the answer."""

    shape: list[int]
    norm: float
    values: list[list[float]] | None = Field(None, description="With `include=latent`.")


class TracedArm(BaseModel):
    """Which arm of the experiment a request is in."""

    unit: str = Field(description="Digest of the user, else of the prompt, that the arm was assigned to.")
    arm: Arm


class TracedFeedback(BaseModel):
    """What somebody said of the answer."""

    id: str
    metric_name: str
    value: bool | float | str
    tags: dict[str, str]
    created_at: str


class TraceRead(BaseModel):
    """What steering did for one request."""

    id: str
    created_at: str
    space: str
    effort: str
    effort_source: str
    options: TraceOptions
    mode: str
    reason: str
    prior_version: str | None
    episodes: list[TracedEpisode]
    reward_before: float | None
    reward_after: float | None
    signals: dict[str, float]
    signals_before: dict[str, float]
    signals_unavailable: list[str]
    steps: list[TracedStep]
    stopped: str | None
    usage: TracedUsage
    timings_s: dict[str, float] = Field(description="Seconds by stage, and in all.")
    remembered: str
    episode_id: str | None
    why_not_remembered: str | None
    experiment: TracedArm | None = Field(None, description="Its arm; null: it is in no experiment.")
    position: int | None
    latent: TracedLatent | None
    feedback: list[TracedFeedback]


# The model documents and does not filter: traces that earlier builds wrote may lack fields.
@router.get("/traces/{trace_id}", response_model=None, responses={200: {"model": TraceRead}, **refusals(404)})
async def trace(
    gateway: GatewayDep, access: AccessDep, trace_id: str, include: Literal["latent"] | None = None
) -> dict[str, Any]:
    """Return a trace with its feedback; `include=latent` adds the latent's values, for replay."""
    try:
        name = str(UUID(trace_id))  # ids name files, so nothing else gets through
    except ValueError:
        raise NotFoundError("trace ids are UUIDs, as in x-latent-trace", "trace_id") from None
    found = await gateway.traces.get(name, include_latent=include == "latent", tenant=access.tenant)
    if found is None:
        raise NotFoundError(f"no trace {name}; old ones are deleted", "trace_id")
    said = await asyncio.to_thread(gateway.state.feedback_on, name)
    found["feedback"] = [
        {
            "id": one.id,
            "metric_name": one.metric_name,
            "value": one.value,
            "tags": one.tags,
            "created_at": one.created_at.isoformat(),
        }
        for one in said
    ]
    return found


@router.delete("/traces/{trace_id}", responses=refusals(404, 507))
async def delete_trace(gateway: GatewayDep, access: AccessDep, trace_id: str) -> Erasure:
    """Forget what a request asked and was answered, and all else that is kept of its prompt.

    By the id of its trace, of its answer, or of feedback on it. What is not text of it stays in the trace.
    """
    name = trace_of(trace_id, "trace_id")
    forgotten = await forget_request(gateway, access.tenant, name)
    if forgotten is None:
        raise NotFoundError(f"nothing is kept of a request {name}", "trace_id")
    return erasure_of(forgotten)


def _summaries(page: Sequence[ListedTrace], questions: Questions) -> list[TraceSummary]:
    """Return traces as lists show them; a thread's work where prompts are long."""
    return [_summary(one, questions) for one in page]


def _summary(one: ListedTrace, questions: Questions) -> TraceSummary:
    content, asked, answer = one.content, one.exchange.asked, one.exchange.answer
    return TraceSummary(
        **{name: content[name] for name in _SAME},
        search_tokens=content["usage"]["generated_tokens"],
        seconds=content["timings_s"].get("total"),
        question=questions.of(asked.text, asked.token_ids)[:SHOWN] if asked else None,
        answer=answer.text.strip()[:SHOWN] if answer else None,
        rating=one.rating,
    )


_SAME = (
    "id",
    "created_at",
    "effort",
    "mode",
    "reason",
    "prior_version",
    "reward_before",
    "reward_after",
    "remembered",
    "episode_id",
)


def _step(step: Step, per_search: float | None) -> dict[str, Any]:
    requests = sum(step.by_mode.values())
    return {
        "requests": requests,
        "by_effort": step.by_effort,
        "by_mode": step.by_mode,
        "learned": step.learned,
        "steered": requests - step.by_mode.get("plain", 0),
        "searched": step.before.n,
        "reward_before": step.before.value,
        "reward_after": step.after.value,
        "searches": step.search_tokens.n,
        "tokens_per_search": step.search_tokens.value,
        "measured": step.difference.n,
        "difference": step.difference.value,
        "rated_steered": step.rated_steered.n,
        "rating_steered": step.rated_steered.value,
        "rated_plain": step.rated_plain.n,
        "rating_plain": step.rated_plain.value,
        "tokens_saved": None if per_search is None else step.learned * per_search,
    }
