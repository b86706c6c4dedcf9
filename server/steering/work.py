"""One request while it is steered: what it was given, and what has been found so far.

Owns the shared state of the stages, their timing, and which result becomes an episode. Decides nothing
about latents.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from memory.episode import LEAST_GAIN, Array, Episode, prompt_digest, prompt_id
from memory.prior import Prior
from memory.store import Recalled
from server.steering.call import Mode, Outcome, RenderedPrompt, SteeringOptions
from server.steering.choose import Choice
from server.steering.metrics import Metrics
from server.steering.priors import Comparison, Serving
from server.steering.refiners.refiner import Refiner, RefineResult
from server.steering.trace import Trace


@dataclass
class Work:
    """A request on its way through the stages."""

    prompt: RenderedPrompt
    options: SteeringOptions
    trace_id: str
    serving: Serving | None
    """What served when the request began, or the version it named."""
    refiner: Refiner
    metrics: Metrics
    store_answers: bool = True
    explores: bool = False
    """Whether answers to it are sampled in the background."""
    floor: float | None = None
    """Least cosine of a recalled episode; None: memory was not asked."""
    seed: int | None = None
    result: RefineResult | None = None
    choice: Choice | None = None
    episode: Episode | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def prior(self) -> Prior | None:
        """The rows that serve this request."""
        return self.serving.prior if self.serving else None

    def comparisons(self, key: Array) -> tuple[Comparison, ...]:
        """Return what this request, of `key` (d,), can tell of rows."""
        return self.serving.comparisons(key, prompt_digest(self.prompt.token_ids)) if self.serving else ()

    @contextmanager
    def stage(self, name: Literal["key", "recall", "transfer", "choose", "refine"]) -> Iterator[None]:
        """Time a stage, also one that fails."""
        begun = time.perf_counter()
        try:
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

    def steered(
        self, latent: torch.Tensor, position: int, recalled: Sequence[Recalled], covered: bool
    ) -> Outcome:
        """Return the outcome that starts at `latent`; plain when that is only the neutral start."""
        mode: Mode = "plain"
        if recalled:
            mode = "recall+prior" if covered else "recall"
        elif covered:
            mode = "prior"
        return Outcome(
            mode=mode,
            reason="",
            latent=latent,
            position=position,
            prior_version=self.prior.version if self.prior else None,
            episode_ids=tuple(near.episode.id for near in recalled),
            similarities=tuple(near.similarity for near in recalled),
        )

    def why_not_remembered(self, threshold: float) -> str | None:
        """Return why nothing of this request is remembered; None when its episode is."""
        measured = self.result is not None and self.result.reward_before is not None
        if self.choice is None and not measured:
            return "nothing was searched for"
        if not self.options.store:
            return "the request asked for it not to be"
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
        result = self.result
        return Trace(
            id=self.trace_id,
            space=space,
            options=self.options,
            outcome=outcome,
            refiner=self.refiner.name if "refine" in self.timings_s else None,
            floor=self.floor,
            seed=self.seed,
            stopped=result.stopped if result else None,
            signals_before=dict(result.signals_before) if result else {},
            signals_after=dict(result.signals_after) if result else {},
            signals_unavailable=result.unavailable if result else (),
            steps=result.steps if result else (),
            timings_s={**self.timings_s, "total": time.perf_counter() - self.started},
            remembered="pending" if why_not is None else "no",
            episode_id=self.episode.id if self.episode and why_not is None else None,
            why_not_remembered=why_not,
        )


def episode_of(
    work: Work, key: Array, space: str, tenant: str, start: torch.Tensor, served: bool, result: RefineResult
) -> Episode | None:
    """Return what a search leaves to remember; None when there is no answer that others agree with.

    The answer says what the elected one does, as shortly as it is sure. The latent is the one whose answer
    beat the unsteered one; where none did, it is the start, and never recalled.

    Args:
        work: The request.
        key: (d,) of its prompt.
        space: Id of the latent space.
        tenant: Whose memory it is.
        start: (L, d) where refining began.
        served: Whether the start would have been served without refining.
        result: What searching found.
    """
    if result.reward_before is None or result.example is None:
        return None
    answer, scored = result.example.answer, result.example.scored
    earned = (
        result.latent is not None
        and result.finished
        and result.reward_after is not None
        and result.reward_after >= result.reward_before + LEAST_GAIN
    )
    return Episode(
        space=space,
        key=key,
        latent=(result.latent if earned and result.latent is not None else start).numpy(),
        reward=scored.reward,
        signals=dict(scored.signals),
        answer_token_ids=answer.token_ids,
        answer_text=answer.text,
        latent_earned=earned,
        start_lift=result.lift if served else None,
        choices=work.prompt.decoding.choices or (),
        plain_reward=result.reward_before,
        refiner="none" if work.explores else work.refiner.name,
        **_common(work, space, tenant),
    )


def episode_of_choice(
    work: Work,
    key: Array,
    space: str,
    tenant: str,
    neutral: torch.Tensor,
    tokens: tuple[int, ...],
    choice: Choice,
) -> Episode:
    """Return what a choice leaves to remember: above all what the model thought of each of them.

    Args:
        work: The request.
        key: (d,) of its prompt.
        space: Id of the latent space.
        tenant: Whose memory it is.
        neutral: (L, d) latent that is never recalled.
        tokens: Of the answer.
        choice: What was chosen.
    """
    return Episode(
        space=space,
        key=key,
        latent=neutral.numpy(),
        reward=choice.probability,
        signals={"choice": choice.probability},
        answer_token_ids=tokens,
        answer_text=choice.text,
        latent_earned=False,
        choices=work.prompt.scored_choices,
        choice_log_probabilities=choice.log_probabilities,
        plain_reward=choice.plain_probability,
        refiner="none",
        **_common(work, space, tenant),
    )


def _common(work: Work, space: str, tenant: str) -> dict[str, Any]:
    """Return the fields that say what was asked, and how."""
    prompt = work.prompt
    return {
        "prompt_token_ids": prompt.token_ids,
        "prompt_text": prompt.text,
        "max_tokens": prompt.decoding.max_tokens,
        "tenant": tenant,
        "effort": work.options.effort,
        "prior_version": work.prior.version if work.prior else None,
        "trace_id": work.trace_id,
        "id": prompt_id(space, tenant, prompt.token_ids, prompt.held_to),
    }
