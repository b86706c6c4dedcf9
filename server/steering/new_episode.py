"""What a request leaves to remember.

Owns how an episode is made of an answer that votes agree on, or of a choice. Decides nothing about whether
it is kept.
"""

from typing import Any

import torch

from memory.episode import LEAST_GAIN, Array, Episode, prompt_id
from model.engine import Engine
from server.steering.request import Request
from server.steering.search.choose import Choice
from server.steering.search.result import SearchResult


def episode_of(
    request: Request, key: Array, space: str, start: torch.Tensor, result: SearchResult
) -> Episode | None:
    """Return what a search leaves to remember; None when there is no answer that others agree with.

    The answer says what the elected one does, as shortly as it is sure. The latent is the one whose answer
    beat the unsteered one; where none did, it is the start, and never recalled.

    Args:
        request: What was asked.
        key: (d,) of its prompt.
        space: Id of the latent space.
        start: (L, d) where the search began.
        result: What it found.
    """
    if result.plain is None or result.best is None or result.example is None:
        return None
    answer, scored, best = result.example.answer, result.example.scored, result.best
    gain = best.scored.reward - result.plain.scored.reward
    earned = best.latent is not None and best.finished and gain >= LEAST_GAIN
    return Episode(
        key=key,
        latent=(best.latent if earned and best.latent is not None else start).numpy(),
        reward=scored.reward,
        signals=dict(scored.signals),
        answer_token_ids=answer.token_ids,
        answer_text=answer.text,
        latent_earned=earned,
        start_lift=result.lift,
        choices=request.prompt.decoding.choices or (),
        plain_reward=result.plain.scored.reward,
        search=request.search or "none",
        **_asked(request, space),
    )


def episode_of_choice(request: Request, key: Array, engine: Engine, choice: Choice) -> Episode:
    """Return what a choice leaves to remember: above all what the model thought of each of them.

    Args:
        request: What was asked.
        key: (d,) of its prompt.
        engine: Whose space and tokens they are.
        choice: What was chosen.
    """
    return Episode(
        key=key,
        latent=engine.neutral_latent().numpy(),  # never recalled
        reward=choice.probability,
        signals={"choice": choice.probability},
        answer_token_ids=engine.answer_tokens(choice.text),
        answer_text=choice.text,
        latent_earned=False,
        choices=request.prompt.scored_choices,
        choice_log_probabilities=choice.log_probabilities,
        held_log_probabilities=choice.held_log_probabilities,
        plain_reward=choice.plain_probability,
        search="none",
        **_asked(request, engine.space.id),
    )


def _asked(request: Request, space: str) -> dict[str, Any]:
    """Return the fields that say what was asked, and how."""
    prompt, tenant = request.prompt, request.options.tenant
    return {
        "space": space,
        "tenant": tenant,
        "prompt_token_ids": prompt.token_ids,
        "prompt_text": prompt.text,
        "max_tokens": prompt.decoding.max_tokens,
        "effort": request.options.effort,
        "prior_version": request.prior.version if request.prior else None,
        "trace_id": request.trace_id,
        "id": prompt_id(space, tenant, prompt.token_ids, prompt.held_to),
    }
