"""What was asked: a prompt as vLLM rendered it, and what steering may do about it.

Owns the two values that every later step reads, with each option resolved: what the request did not choose is
the server's setting. Knows neither HTTP nor vLLM.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from memory.episode import TENANT
from model.engine import Decoding

if TYPE_CHECKING:  # searches are timed on machines with torch and little else (`scripts/gpu.py`)
    from config.settings import Effort, SearchName, Settings

EffortSource = Literal["latent.effort", "model", "reasoning_effort", "default"]


class SteeringRejectedError(ValueError):
    """A request that asks for what cannot be done; becomes an OpenAI-shaped 400.

    `param` names the request's field, such as `latent.prior`.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def no_gradient() -> SteeringRejectedError:
    """Return the error of a request that asks for what only the gradient worker can do."""
    return SteeringRejectedError(
        "latent.search: 'gradient' needs the gradient worker, which is off here", "latent.search"
    )


@dataclass(frozen=True)
class RenderedPrompt:
    """A request as vLLM rendered it."""

    token_ids: tuple[int, ...]
    text: str
    """The rendered prompt as text."""
    question: str
    """Text of the last user message, for rewards that read it."""
    decoding: Decoding
    """How the request asked to be decoded; the final answer is decoded by vLLM itself."""
    format_rules: Mapping[str, Any] = field(default_factory=dict)
    """Checks that the request implies: `json_schema`, `json_object`, `regex`, `boxed`."""
    held_to: str | None = None
    """The grammar that holds its answers, as text, whatever kind it is; None: none."""
    scored_choices: tuple[str, ...] = ()
    """What the answer is held to, where nothing but the model's probabilities decides between them."""
    asked_tokens: int | None = None
    """Longest answer that the request asked for; None: as long as the context allows."""
    answers: int = 1
    """How many answers it asked for."""


@dataclass(frozen=True)
class Options:
    """What steering may do for one request."""

    effort: Effort
    effort_source: EffortSource
    given: frozenset[str]
    """Names of the fields below that the request chose itself."""
    search: SearchName
    """What `medium` and `high` search by."""
    recalls: bool
    """Whether latents of similar requests may be served though nothing has proven them."""
    k: int
    """Most episodes recalled."""
    floor: float | None
    """Least cosine of a recalled episode; None: what the night has learned of its like."""
    steps: int
    """Most optimisation steps; 0 only samples and votes."""
    votes: int
    """Sampled answers that vote, one less where that is odd and two sides vote."""
    population: int
    """Candidates (evolution, even) or rollouts (gradient) per step."""
    answer_tokens: int
    """Longest answer that a search may keep."""
    vote_tokens: int
    """Longest answer that votes, where that is more: a vote may think longer."""
    budget_tokens: int | None
    """Most tokens that a search may generate; None: no limit but the steps."""
    deadline_s: float
    """Time from the start of a search after which it ends with its best."""
    prior: str | None
    """Version of the prior to use, `none` for no prior; None: the active one."""
    store: bool
    """Whether the request may be remembered."""
    explore: bool
    """Whether it may be searched for once it is answered."""
    seed: int | None
    """Of what is sampled; None: the prompt's."""
    tenant: str = TENANT
    """Whose request it is: it sees that one's memory and priors, and leaves its own there."""
    who: str | None = None
    """Digest of what names the user; None: nothing does."""

    @classmethod
    def of(
        cls,
        settings: Settings,
        effort: Effort,
        effort_source: EffortSource = "default",
        *,
        store: bool = True,
        who: str | None = None,
        **chosen: Any,
    ) -> Options:
        """Return the options of a request at an effort.

        Args:
            settings: What holds where the request is silent.
            effort: How much is spent on it.
            effort_source: Where the effort comes from.
            store: Whether it may be remembered.
            who: Digest of what names the user.
            chosen: What it chose itself: search, k, floor, steps, budget_tokens, deadline_s, prior, explore,
                seed; None is no choice.

        Raises:
            SteeringRejectedError: what was chosen cannot be done here.
        """
        given = {name: value for name, value in chosen.items() if value is not None}
        if given.get("search") == "gradient" and not settings.gradient_worker:
            raise no_gradient()
        search = given.get("search", settings.high_search if effort == "high" else "vote")
        floor = given.get("floor", settings.recall_floor)
        return cls(
            effort=effort,
            effort_source=effort_source,
            given=frozenset(given),
            search=search,
            recalls=settings.low_recalls or "k" in given or "floor" in given,
            k=given.get("k", settings.recall_k),
            floor=floor,
            steps=0 if search == "vote" else given.get("steps", settings.high_steps),
            votes=settings.high_votes if effort == "high" else settings.medium_votes,
            population=settings.population,
            answer_tokens=settings.search_max_tokens,
            vote_tokens=settings.vote_tokens,
            budget_tokens=given.get("budget_tokens"),
            deadline_s=given.get("deadline_s", settings.search_deadline_s),
            prior=given.get("prior"),
            store=store,
            explore=given.get("explore", effort == "low" and random.random() < settings.explore_share),
            seed=given.get("seed"),
            who=who,
        )


def longest_answer(prompt: RenderedPrompt, options: Options, room: int) -> int:
    """Return the most tokens of an answer that a search may keep, of a context that has `room` left."""
    return min(prompt.decoding.max_tokens, options.answer_tokens, room)


def seed_of(prompt: RenderedPrompt, options: Options) -> int:
    """Return the request's seed, or one that its prompt fixes, so that a request can be repeated."""
    for seed in (options.seed, prompt.decoding.seed):
        if seed is not None:
            return seed % 2**32
    return int.from_bytes(hashlib.sha256(repr(prompt.token_ids).encode()).digest()[:4], "big")
