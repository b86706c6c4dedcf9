"""One request while it is steered, and the call that carries it through vLLM's own serving code.

Owns what the stages share: what was asked, what serves it, what has been found so far, and how long it took.
Decides nothing about latents.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from config.settings import SearchName
from memory.episode import Array, Episode, new_id, prompt_digest, prompt_id
from memory.prior import Prior
from server.spans import span
from server.steering.active_prior import Comparison, Serving
from server.steering.metrics import Metrics
from server.steering.outcome import Answer, Asked, Assignment, Outcome, Trace
from server.steering.prompt import Options, RenderedPrompt, seed_of
from server.steering.search.choose import Choice
from server.steering.search.result import SearchResult


@dataclass
class SteeringCall:
    """One request on its way through vLLM's serving code; filled in by the hook."""

    options: Options
    trace_id: str = field(default_factory=new_id)
    traced: bool = False
    """Whether steering ran, and so left a trace of this id."""
    outcome: Outcome | None = None
    left: bool = False
    """Whether the client has gone."""
    batch: list["SteeringCall"] | None = None
    """Of a request of several conversations: a call for each, in their order, once it is rendered."""

    def conversation(self) -> "SteeringCall":
        """Return the call of the conversation that is being rendered: of a batch, a new one."""
        if self.batch is None:
            return self
        self.batch.append(SteeringCall(self.options))
        return self.batch[-1]

    @property
    def conversations(self) -> list["SteeringCall"]:
        """What was rendered: of a batch, the call of each conversation, else itself."""
        return self.batch or [self]

    def leave(self) -> None:
        """Note that the client has gone."""
        for call in (self, *(self.batch or ())):
            call.left = True


current_call: ContextVar[SteeringCall | None] = ContextVar("current_call", default=None)
"""The call of the request being served; None outside of steered routes."""


@dataclass
class Request:
    """A request on its way through the stages."""

    prompt: RenderedPrompt
    options: Options
    trace_id: str
    serving: Serving | None
    """What served when the request began, or the version it named."""
    chooses: bool
    """Whether the probabilities of its choices say what is right."""
    metrics: Metrics
    store_answers: bool = True
    explored: bool = False
    """Whether it is searched for in the background."""
    assignment: Assignment | None = None
    """Its arm in the experiment; None: it is in none."""
    floor: float | None = None
    """Least cosine of a recalled episode; None: memory was not asked."""
    search: SearchName | None = None
    """Search that runs or ran."""
    result: SearchResult | None = None
    choice: Choice | None = None
    episode: Episode | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def prior(self) -> Prior | None:
        """The rows that serve this request."""
        return self.serving.prior if self.serving else None

    @property
    def searches(self) -> bool:
        """Whether an answer is searched for while the client waits."""
        return self.options.effort in ("medium", "high") and self.prompt.answers == 1

    @property
    def refines(self) -> bool:
        """Whether latents are searched for, too."""
        return self.searches and not self.chooses and self.options.search != "vote"

    def comparisons(self, key: Array) -> tuple[Comparison, ...]:
        """Return what this request, of `key` (d,), can tell of rows."""
        return self.serving.comparisons(key, prompt_digest(self.prompt.token_ids)) if self.serving else ()

    @contextmanager
    def stage(self, name: Literal["key", "recall", "transfer", "choose", "search"]) -> Iterator[None]:
        """Time a stage, also one that fails."""
        begun = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self.timings_s[name] = time.perf_counter() - begun
            self.metrics.stage_seconds.labels(name).observe(self.timings_s[name])

    def noting(self, reason: str) -> str:
        """Return the reason, and what did not answer: the store, or a reward signal."""
        missing = [] if self.store_answers else ["store"]
        missing += self.result.unavailable if self.result else ()
        return "+".join((reason, *(f"{name}-unavailable" for name in missing)))

    def plain(self, reason: str) -> Outcome:
        """Return the outcome without a latent. Its prior version tells only of a prior that was asked."""
        asked = self.prior if self.options.effort != "none" else None
        return Outcome(mode="plain", reason=reason, prior_version=asked.version if asked else None)

    def unsteered(self, reason: str) -> Outcome:
        """Return the plain outcome of a request that was to be steered.

        Several answers are a reason of their own where one would have been searched for.
        """
        several = self.options.effort in ("medium", "high") and not self.searches
        return self.plain("several-answers" if several else reason)

    def why_not_remembered(self, threshold: float) -> str | None:
        """Return why nothing of this request is remembered; None when its episode is."""
        if self.choice is None and self.result is None:
            return "nothing was searched for"
        if not self.options.store:
            return "the request asked for it not to be"
        if self.result is not None and self.result.plain is None:
            return "the search ended before all answers were there"
        if self.episode is None:
            return "no answer was finished in the form that was asked for, or no two agreed"
        if not self.episode.answer_text.strip():
            return "the best answer is empty"
        # Of choices the night decides anew which is right, with all of the day in view.
        if self.episode.reward < threshold and not self.episode.choices:
            return f"its reward {self.episode.reward:.3f} is below {threshold:g}"
        return None

    def trace(self, outcome: Outcome, space: str, why_not: str | None) -> Trace:
        """Return the record of this request."""
        return Trace(
            id=self.trace_id,
            space=space,
            options=self.options,
            outcome=outcome,
            search=self.search,
            found=self.result,
            floor=self.floor,
            seed=seed_of(self.prompt, self.options) if self.search or self.explored else None,
            timings_s={**self.timings_s, "total": time.perf_counter() - self.started},
            remembered="pending" if why_not is None else "no",
            episode_id=self.episode.id if self.episode and why_not is None else None,
            why_not_remembered=why_not,
            assignment=self.assignment,
            asked=self._asked(space),
            answer=self._answered(outcome),
        )

    def _asked(self, space: str) -> Asked | None:
        prompt = self.prompt
        if not self.options.store:
            return None
        return Asked(
            prompt=prompt_id(space, self.options.tenant, prompt.token_ids, prompt.held_to),
            token_ids=prompt.token_ids,
            text=prompt.text,
            choices=prompt.scored_choices if self.chooses else prompt.decoding.choices or (),
            max_tokens=prompt.decoding.max_tokens,
        )

    def _answered(self, outcome: Outcome) -> Answer | None:
        if outcome.answer is None:
            return None
        if self.episode is not None and not self.explored:  # says the same as shortly as it is sure
            return Answer(self.episode.answer_token_ids, self.episode.answer_text, finished=True)
        return Answer.of(outcome.answer)
