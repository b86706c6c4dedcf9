"""Trying latents on one prompt: decoding, scoring, and the account of tokens and time.

Owns the budget, the deadline, the rollouts that vote and the best so far, so that refiners hold nothing
but their search. Knows nothing of how the next latents are chosen.

Candidates are judged by their greedy answers, also when the request samples: that is the latent's own
doing, while the best of several samples would mostly be the luckiest.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch

from model.engine import (
    Decoding,
    Engine,
    EngineError,
    Generation,
    Label,
    SteeredPrompt,
    UnsupportedError,
    Usage,
)
from model.final_answer import final_span
from model.space import LatentRejectedError
from server.steering.call import RenderedPrompt
from server.steering.refiners.refiner import Elected, Limits, RefineResult, RefineStep, Stopped
from server.steering.rewards.confidence import final_confidence
from server.steering.rewards.consistency import CONSISTENCY
from server.steering.rewards.format import FORMAT, are_in_form
from server.steering.rewards.scorer import VERIFIER, Scored, Scorer
from server.steering.votes import counted, leading, said

logger = logging.getLogger(__name__)

ROLLOUT_TEMPERATURE = 1.0
"""Samples of the model's own distribution: what a vote and an on-policy gradient are about."""

PATIENCE = 3
"""Steps without a better answer after which refining ends."""

MARGIN = 1e-6
"""A reward counts as better from here on: less is the noise of float32 log-probabilities."""

ALIKE = 0.1
"""Rewards this close together do not tell answers apart that say the same in the end: with the default
weights, one is said more surely than the other."""

BETTER = 0.05
"""Least reward by which a refined answer must beat the best of those that voted."""

AS_SURE = 0.05
"""Of answers that say the same, those are as good whose result is this close to the surest (ADR 0016)."""

T = TypeVar("T")


class TrialEndedError(Exception):
    """The trial ends here; `reason` says why. Refiners let it pass through `Trial.run`."""

    def __init__(self, reason: Stopped) -> None:
        super().__init__(reason)
        self.reason: Stopped = reason


class Rollouts(NamedTuple):
    """Sampled answers to one latent."""

    answers: list[Generation]
    scores: list[Scored]


class Trial:
    """One refinement of one prompt. `open`, then any number of `step`s, then `result`."""

    def __init__(
        self, engine: Engine, scorer: Scorer, prompt: RenderedPrompt, position: int, limits: Limits
    ) -> None:
        self._engine, self._scorer, self._prompt, self._limits = engine, scorer, prompt, limits
        self._position = position
        self._deadline = time.monotonic() + limits.deadline_s
        self._length = limits.max_tokens
        self._spent = 0
        self._pool: list[Generation] = []
        self._plain: Scored | None = None
        self._first_answers: dict[bool, list[Generation]] = {True: [], False: []}
        """Before any step: of no latent, and of the start."""
        self._start: Scored | None = None
        self._best: tuple[torch.Tensor | None, Generation, Scored] | None = None
        self._finished: list[Elected] = []
        """Answers that the request could be given."""
        self._best_is_start = False
        self._since_better = 0
        self._steps: list[RefineStep] = []
        self._usage = Usage()
        self._prompt_read = False
        self._seed = limits.seed

    @property
    def best(self) -> float:
        """Best reward so far."""
        return self._best[2].reward if self._best else 0.0

    async def open(self, start: torch.Tensor) -> None:
        """Decode and score the unsteered answer and the start's, with sampled rollouts that vote.

        A start that nobody would be served and no step begins at is left out: untrained latents say odd
        things. The unsteered model votes, and on equal terms the start where that is what would be served:
        what the model says today shall have a vote, and shall not be the only one to have it. Of each side
        that votes the greedy answer does, too; with one vote more, a side would look better than it is.

        Raises:
            TrialEndedError: no budget or time for it, or already perfect.
        """
        overhead = self._scorer.tokens_per_answer
        greedy = [self._steered(None)]
        if self._limits.steps or self._limits.start_is_served:
            greedy.append(self._steered(start))
        left = self._left()
        if left is not None:  # the least that can be compared: one vote would agree with nothing
            least = len(greedy) + min(2, self._limits.votes)
            self._length = min(self._length, left // least - overhead)
        if self._length < 1:
            raise TrialEndedError("budget")
        if left is not None:
            left -= len(greedy) * (self._length + overhead)
        voters = self._voters(start, left)
        prompts = [*greedy, *(prompt for prompt, _ in voters)]
        decodings = [*(self._greedy() for _ in greedy), *(decoding for _, decoding in voters)]
        answers = await self._generate(prompts, decodings, scored=len(prompts))
        voting = len(self._sides(start))
        self._pool = [*answers[:voting], *answers[len(greedy) :]]
        for prompt, answer in zip(prompts, answers, strict=True):
            self._first_answers[prompt.latent is None].append(answer)
        scores = await self._score(answers, [prompt.latent for prompt in prompts], refined=False)
        self._plain = scores[0]
        self._best = (None, answers[0], self._plain)
        if len(greedy) == 2:
            self._start = scores[1]
            if self._start.reward > self._plain.reward + MARGIN:
                self._best, self._best_is_start = (start.clone(), answers[1], self._start), True
        self._steps.append(RefineStep(0, tuple(s.reward for s in scores[: len(greedy)]), self.best))
        if self.best >= 1.0 - MARGIN:
            raise TrialEndedError("perfect")

    def _sides(self, start: torch.Tensor) -> list[torch.Tensor | None]:
        """Return the latents that vote, None for no latent."""
        return [None, start] if self._limits.start_is_served else [None]

    def _voters(self, start: torch.Tensor, left: int | None) -> list[tuple[SteeredPrompt, Decoding]]:
        """Return the rollouts that vote, as many and as long ones of each side.

        Fewer when `left`, what the budget has for them, pays for fewer.
        """
        overhead, length, sides = self._scorer.tokens_per_answer, self._length, self._sides(start)
        voters: list[tuple[SteeredPrompt, Decoding]] = []
        for _ in range(self._limits.votes // len(sides)):
            tokens = max(length, self._limits.vote_tokens)
            if left is not None:
                owed = max(0, 2 - len(voters) - len(sides)) * (length + overhead)  # to the second vote
                tokens = max(length, min(tokens, (left - owed) // len(sides) - overhead))
                left -= (tokens + overhead) * len(sides)
                if left < 0:
                    break
            for side in sides:
                voters.append((self._steered(side), replace(self._sampled(), max_tokens=tokens)))
        return voters

    async def candidates(self, latents: Sequence[torch.Tensor]) -> list[Scored]:
        """Decode and score the greedy answer to each latent; the best is kept.

        Raises:
            TrialEndedError: no time for it. The caller has asked `affordable` before.
        """
        scores, _ = await self._answer(latents, [])
        return scores

    async def rollouts(self, latent: torch.Tensor, count: int) -> Rollouts:
        """Sample and score `count` answers to one latent. They are luck, so none makes it the best latent.

        Raises:
            TrialEndedError: no time for it. The caller has asked `affordable` before.
        """
        _, sampled = await self._answer([], [latent] * count)
        return sampled

    async def candidate_and_rollouts(self, latent: torch.Tensor, count: int) -> tuple[Scored, Rollouts]:
        """Do both for one latent, in one batch: its greedy answer, and `count` samples, which may be none.

        Raises:
            TrialEndedError: no time for it. The caller has asked `affordable` before.
        """
        scores, sampled = await self._answer([latent], [latent] * count)
        return scores[0], sampled

    async def _answer(
        self, judged: Sequence[torch.Tensor], sampled: Sequence[torch.Tensor]
    ) -> tuple[list[Scored], Rollouts]:
        prompts = [self._steered(latent) for latent in (*judged, *sampled)]
        decodings = [*(self._greedy() for _ in judged), *(self._sampled() for _ in sampled)]
        answers = await self._generate(prompts, decodings, scored=len(prompts))
        scores = await self._score(answers, [*judged, *sampled], refined=True)
        for latent, answer, scored in zip(judged, answers, scores, strict=False):
            self._keep(latent, answer, scored)
        return scores[: len(judged)], Rollouts(answers[len(judged) :], scores[len(judged) :])

    async def gradient(self, latent: torch.Tensor, told: Sequence[tuple[Generation, float]]) -> torch.Tensor:
        """Return Σ_b d(weight_b · log p_b)/dz, (L, d), for answers and their weights.

        log p is the log-probability of the whole answer: of being the one that is drawn among the request's
        choices where it has some, otherwise divided by the answers' mean length.

        Raises:
            TrialEndedError: no time for it, or the engine failed.
        """
        choices = self._prompt.decoding.choices
        if choices:
            told = [(answer, weight) for answer, weight in told if answer.text in choices]
            tokens = [self._engine.answer_tokens(answer.text) for answer, _ in told]
            weights = [weight for _, weight in told]
        else:
            tokens = [answer.token_ids for answer, _ in told]
            mean_length = sum(map(len, tokens)) / len(tokens)
            # The engine's likelihood is a mean per token, REINFORCE's a sum over the answer.
            weights = [weight * len(answer.token_ids) / mean_length for answer, weight in told]
        if not told:
            return torch.zeros_like(latent)
        prompts = [self._steered(latent)] * len(told)
        labels = [Label.of(answer, choices or ()) for answer in tokens]
        result = await self._within_deadline(self._engine.latent_gradient(prompts, labels, weights))
        # What stands before the latent runs forward only and once for all steps: decoding has counted it.
        behind = len(self._prompt.token_ids) - self._position + len(latent)
        passed = behind * len(told) + sum(map(len, tokens))
        self._usage += Usage(forward_tokens=3 * passed)
        return result.gradient.sum(dim=0)

    def affordable(self, wanted: int, *, least: int = 1, multiple: int = 1) -> int:
        """Return how many answers of full length the budget still pays for, at most `wanted`.

        Raises:
            TrialEndedError: fewer than `least`, in multiples of `multiple`.
        """
        left = self._left()
        count = wanted
        if left is not None:
            count = min(wanted, left // (self._length + self._scorer.tokens_per_answer))
        count -= count % multiple
        if count < least:
            raise TrialEndedError("budget")
        return count

    def end_step(self, step: int, rewards: Sequence[float]) -> None:
        """Log a step.

        Raises:
            TrialEndedError: there is nothing more to gain.
        """
        self._since_better = 0 if self.best > self._steps[-1].best + MARGIN else self._since_better + 1
        self._steps.append(RefineStep(step, tuple(rewards), self.best))
        if self.best >= 1.0 - MARGIN:
            raise TrialEndedError("perfect")
        if self._since_better >= PATIENCE:
            raise TrialEndedError("plateau")

    async def run(self, start: torch.Tensor, search: Callable[[], Awaitable[None]]) -> RefineResult:
        """Open the trial, run a search that calls the methods above, and return its result.

        Raises:
            EngineError, LatentRejectedError: before the first answer was scored.
            UnsupportedError: at any time.
        """
        stopped: Stopped = "steps"
        try:
            await self.open(start)
            await search()
        except TrialEndedError as ended:
            stopped = ended.reason
        except (EngineError, LatentRejectedError) as error:
            if self._best is None or isinstance(error, UnsupportedError):
                raise
            logger.warning("refining ends with its best so far: %s: %s", type(error).__name__, error)
            stopped = "engine-error"
        return self._result(stopped)

    def _result(self, stopped: Stopped) -> RefineResult:
        if self._best is None or self._plain is None:
            return RefineResult(stopped=stopped, usage=self._usage)
        latent, answer, scored = self._best
        elected = self._elected()
        return RefineResult(
            stopped=stopped,
            latent=latent,
            answer=answer,
            reward_before=self._plain.reward,
            reward_start=self._start.reward if self._start else None,
            reward_after=scored.reward,
            signals_before=self._plain.signals,
            signals_after=scored.signals,
            finished=any(answer is one.answer for one in self._finished),
            from_start=self._best_is_start,
            elected=elected,
            example=self._shortest_of_the_surest(elected),
            plain=tuple(self._first_answers[True]),
            start=tuple(self._first_answers[False]),
            steps=tuple(self._steps),
            usage=self._usage,
        )

    def _elected(self) -> Elected | None:
        """Return the answer to give: of those that most votes are for the one of the highest reward.

        Where a verifier has its say, or the operator's signals do not count votes, the reward alone decides.
        One of a refined latent takes its place where it is better under the same votes, by a margin.
        """
        able = self._finished
        votes = any(reward.name == CONSISTENCY for reward, _ in self._scorer.rewards)
        if votes and not any(VERIFIER in one.scored.signals for one in able):
            first = leading(counted(self._prompt, self._pool))
            able = [one for one in able if said(self._prompt, one.answer) in first]
        voted = max((one for one in able if not one.refined), key=_reward, default=None)
        refined = max((one for one in able if one.refined), key=_reward, default=None)
        if voted is None or refined is None:
            return voted or refined
        return refined if _reward(refined) >= _reward(voted) + BETTER else voted

    def _shortest_of_the_surest(self, elected: Elected | None) -> Elected | None:
        """Return the shortest answer that says what the elected one does, with a result as sure.

        What is remembered is what the night teaches: of two ways to the same result the shorter one costs
        less to serve, and ends more surely within what requests allow. But the shortest of all is often a
        guess that happened to agree: it leaves out what leads to the result, and is less sure (ADR 0016).
        """
        if elected is None or (vote := said(self._prompt, elected.answer)) is None:
            return elected
        alike = [
            one
            for one in self._finished
            if _reward(one) >= _reward(elected) - ALIKE and said(self._prompt, one.answer) == vote
        ]
        choices = self._prompt.decoding.choices
        sure = [
            final_confidence(one.answer, self._engine.decode, final_span(one.answer.text, choices)) or 0.0
            for one in alike
        ]
        as_sure = [one for one, value in zip(alike, sure, strict=True) if value >= max(sure) - AS_SURE]
        return min(as_sure, key=lambda one: (len(one.answer.token_ids), -_reward(one)))

    def _keep(self, latent: torch.Tensor, answer: Generation, scored: Scored) -> None:
        if scored.reward > self.best + MARGIN:
            self._best, self._best_is_start = (latent.clone(), answer, scored), False

    async def _generate(
        self, prompts: Sequence[SteeredPrompt], decodings: Sequence[Decoding], scored: int
    ) -> list[Generation]:
        # Booked in full before the call: a batch that is cut short may have generated all of it.
        booked = sum(decoding.max_tokens for decoding in decodings)
        read = self._read(prompts)
        self._spent += booked
        try:
            answers = await self._within_deadline(self._engine.generate(prompts, decodings))
        except (TrialEndedError, EngineError):
            self._usage += Usage(read, booked, read + booked)
            raise
        generated = sum(len(answer.token_ids) for answer in answers)
        judged = scored * self._scorer.tokens_per_answer
        self._spent += generated + judged - booked
        self._usage += Usage(read, generated + judged, read + generated + judged)
        return answers

    def _read(self, prompts: Sequence[SteeredPrompt]) -> int:
        """Return the prompt tokens to count.

        The prompt itself counts once in a trial, for engines keep its KV cache; latents and what stands
        behind them for each.
        """
        length = len(self._prompt.token_ids)
        once = 0 if self._prompt_read else length
        self._prompt_read = True
        return once + sum(length - self._position + len(p.latent) for p in prompts if p.latent is not None)

    async def _score(
        self, answers: Sequence[Generation], latents: Sequence[torch.Tensor | None], *, refined: bool
    ) -> list[Scored]:
        """Score answers, and keep those that the request itself could have been given, in its form."""
        scores = await self._within_deadline(self._scorer.score(self._prompt, answers, self._pool))
        if all(FORMAT in scored.signals for scored in scores):
            in_form = [scored.signals[FORMAT] == 1.0 for scored in scores]
        else:  # outside of the deadline: it would throw away scores that are there
            in_form = await are_in_form(self._prompt, answers)
        self._finished += [
            Elected(answer, scored, latent, refined)
            for answer, scored, latent, kept in zip(answers, scores, latents, in_form, strict=True)
            if kept and answer.finish_reason == "stop" and len(answer.token_ids) <= self._length
        ]
        return scores

    async def _within_deadline(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                return await work
        except TimeoutError as error:
            raise TrialEndedError("deadline") from error

    def _left(self) -> int | None:
        return None if self._limits.budget_tokens is None else self._limits.budget_tokens - self._spent

    def _steered(self, latent: torch.Tensor | None) -> SteeredPrompt:
        position = None if latent is None else self._position
        return SteeredPrompt(self._prompt.token_ids, latent, position)

    def _greedy(self) -> Decoding:
        return replace(
            self._prompt.decoding,
            max_tokens=self._length,
            temperature=0.0,
            seed=None,
            logprobs=True,
        )

    def _sampled(self) -> Decoding:
        self._seed = (self._seed + 1) % 2**32
        return replace(self._greedy(), temperature=ROLLOUT_TEMPERATURE, seed=self._seed)


def _reward(found: Elected) -> float:
    return found.scored.reward
