"""What people say of answers, and what memory makes of it.

Owns which feedback becomes an episode, and what such an episode holds; what becomes of it beside another one
of the same prompt is `memory/merge.py`'s. Knows nothing of HTTP.
"""

import asyncio
import logging
from dataclasses import replace
from typing import Literal

from memory.episode import FEEDBACK, GOOD, Episode, LatentMemoryError, StoreUnavailableError, now
from memory.free_space import NoRoomError
from memory.redaction import Redaction
from memory.state import Feedback
from server.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from server.gateway import Gateway
from server.keys import keys_of
from server.steering.outcome import SEARCHED, Answer, Asked, Assignment
from server.tracing import evaluated

logger = logging.getLogger(__name__)

Metric = Literal["rating", "comment", "demonstration"]

WRITTEN_S = 10.0
"""How long an episode may take to be written until the client is asked to come again."""

_NAMED = 16
"""Most choices that an error names."""


async def take(gateway: Gateway, said: Feedback) -> Feedback:
    """Keep what somebody said of an answer and let memory learn from it; said again, nothing changes.

    Raises:
        NotFoundError: there is no such trace any more, or nothing is kept of what the feedback is about.
        ConflictError: something else was said under this id.
        InvalidRequestError: a demonstration that its request did not allow.
        UnavailableError, LatentMemoryError, EngineError: nothing is kept; send it again under the same id.
    """
    settings = gateway.settings
    redact = Redaction.of(settings.memory_text, settings.memory_redact)
    kept = replace(said, value=redact.text_of(said.value)) if isinstance(said.value, str) else said
    known = await asyncio.to_thread(gateway.state.feedback, said.id, said.tenant)
    if known is None:
        trace = await gateway.traces.get(said.trace, tenant=said.tenant)
        if trace is None:
            raise NotFoundError(
                f"no trace {said.trace}: traces are deleted after {settings.trace_limit} later ones",
                "inference_id",
            )
        if said.metric_name != "comment":
            episode = await _episode(gateway, said, trace)
            if episode is not None:
                await _remember(gateway, said.trace, episode)
        known = await asyncio.to_thread(gateway.state.add_feedback, kept)
        if known is kept:
            gateway.metrics.tally("feedback", said.metric_name, said.tenant)
            await _weigh(gateway, said)
            if said.metric_name == "rating":
                if trace.get("experiment"):
                    assigned = Assignment.of_json(trace["experiment"])
                    gateway.experiment.rated(said.tenant, assigned, float(said.value))
                evaluated("rating", float(said.value), latentevolve__trace_id=said.trace)
    if known != kept:
        raise ConflictError(f"{said.id} was given to other feedback before", "feedback_id")
    return known


async def _weigh(gateway: Gateway, said: Feedback) -> None:
    """Let it count for rows that were measured. It is kept by now: that it does not count fails nobody."""
    try:
        await gateway.steering.people.spoke(said.trace, said.tenant)
    except LatentMemoryError as error:
        logger.warning("trace %s: feedback is no evidence: %s", said.trace, error)


async def _remember(gateway: Gateway, trace_id: str, episode: Episode) -> None:
    match await gateway.remember.write(episode, WRITTEN_S):
        case "stored":
            found = {"episode_id": episode.id, "why_not_remembered": None}
            gateway.traces.change(trace_id, found)
        case "refused":
            raise NoRoomError("the disk is nearly full: nothing is remembered until there is room")
        case None:
            raise StoreUnavailableError(
                "it does not take episodes; send the feedback again under the same id"
            )
        case fate:
            raise UnavailableError(
                f"the episode of this feedback was {fate}; send it again under the same id"
            )


async def _episode(gateway: Gateway, said: Feedback, trace: dict[str, object]) -> Episode | None:
    """Return what memory makes of a rating or demonstration; None where a good answer was cut off."""
    exchange = await gateway.traces.exchange(said.trace, said.tenant)
    asked, answer = (exchange.asked, exchange.answer) if exchange else (None, None)
    if asked is not None and isinstance(said.value, str):
        return await _of(gateway, said, trace, asked, _demonstrated(gateway, asked, said.value), 1.0)
    value = float(said.value) if not isinstance(said.value, str) else 1.0
    if asked is not None and answer is not None:
        if not answer.finished and value >= GOOD:
            return None  # a night would learn to stop in the middle
        return await _of(gateway, said, trace, asked, answer, value)
    found = await _found_by(gateway, trace)
    if found is None or isinstance(said.value, str):
        raise NotFoundError(
            f"nothing is kept that a {said.metric_name} could be about: the request asked not to be "
            "remembered (latent.store) or for several answers, the server keeps no such texts "
            "(LATENTEVOLVE_MEMORY_TEXT, LATENTEVOLVE_MEMORY_REDACT), it was forgotten, or it has not ended",
            "inference_id",
        )
    return replace(found, signals=found.signals | {FEEDBACK: value}, reward=value)


async def _found_by(gateway: Gateway, trace: dict[str, object]) -> Episode | None:
    """Return the episode of a request whose client got the answer that is in it."""
    name = trace["episode_id"]
    if trace["mode"] not in SEARCHED or "explored" in trace or not isinstance(name, str):
        return None
    return await gateway.lookups.call(lambda store: store.get(name))


def _demonstrated(gateway: Gateway, asked: Asked, text: str) -> Answer:
    engine = gateway.engine
    if asked.choices and text not in asked.choices:
        some = ", ".join(map(repr, asked.choices[:_NAMED]))
        raise InvalidRequestError(
            f"the answer was to be one of {len(asked.choices)} choices: {some}", "value"
        )
    tokens = engine.answer_tokens(text)
    room = engine.max_model_len - len(asked.token_ids) - engine.space.length
    if len(tokens) >= room:
        raise InvalidRequestError(
            f"an answer of {len(tokens)} tokens does not fit: its prompt leaves {max(room, 0)}", "value"
        )
    return Answer(tokens, text, finished=True)


async def _of(
    gateway: Gateway, said: Feedback, trace: dict[str, object], asked: Asked, answer: Answer, value: float
) -> Episode:
    known = await gateway.lookups.call(lambda store: store.get(asked.prompt))
    key = known.key if known else (await keys_of(gateway, [asked.token_ids], "inference_id"))[0][0]
    prior = trace["prior_version"]
    return Episode(
        id=asked.prompt,
        space=gateway.space,
        tenant=said.tenant,
        key=key,
        latent=gateway.engine.neutral_latent().numpy(),  # never recalled
        latent_earned=False,
        reward=value,
        signals={FEEDBACK: value},
        prompt_token_ids=asked.token_ids,
        prompt_text=asked.text,
        answer_token_ids=answer.token_ids,
        answer_text=answer.text,
        choices=asked.choices,
        max_tokens=max(asked.max_tokens, len(answer.token_ids)),
        effort=str(trace["effort"]),
        search="none",
        prior_version=prior if isinstance(prior, str) else None,
        trace_id=said.trace,
        created_at=now(),
    )
