"""One search on one prompt: decoding, scoring, and the best so far.

Owns the rollouts that vote and the account of what was tried, so that a search holds nothing but how the next
latents are chosen.

Candidates are judged by their greedy answers, also when the request samples: that is the latent's own doing,
while the best of several samples would mostly be the luckiest. All of them are scored by the signals that
scored the first ones: Q without a verifier that had said 0 would look like an improvement.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from model.engine import (
    Decoding,
    Engine,
    EngineError,
    Finished,
    Generation,
    Label,
    SteeredPrompt,
    UnsupportedError,
)
from model.space import LatentRejectedError
from server.spans import span
from server.steering.prompt import Options, RenderedPrompt, longest_answer, seed_of
from server.steering.rewards.consistency import CONSISTENCY
from server.steering.rewards.format import FORMAT, are_in_form
from server.steering.rewards.scorer import VERIFIER, Scored, Scorer
from server.steering.search.budget import Budget, SessionEndedError
from server.steering.search.result import Candidate, Search, SearchResult, Step, Stopped
from server.steering.search.select import elect, shortest_of_the_surest

logger = logging.getLogger(__name__)

ROLLOUT_TEMPERATURE = 1.0
"""Samples of the model's own distribution: what a vote and an on-policy gradient are about."""

PATIENCE = 3
"""Steps without a better answer after which a search ends."""

MARGIN = 1e-6
"""A reward counts as better from here on: less is the noise of float32 log-probabilities."""


class Rollouts(NamedTuple):
    """Sampled answers to one latent."""

    answers: list[Generation]
    rewards: list[float]


class Session:
    """One search of one prompt.

    Args:
        engine: Decodes.
        scorer: Scores.
        prompt: What was asked.
        start: (L, d) latent where the search begins.
        position: Where latents go in.
        options: How far it may go.
        served: (L, d) latent that would be served without searching, where the search need not begin; it
            votes on equal terms with no latent. None: none would be.
    """

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        prompt: RenderedPrompt,
        start: torch.Tensor,
        position: int,
        options: Options,
        *,
        served: torch.Tensor | None,
    ) -> None:
        self._engine, self._scorer, self._prompt = engine, scorer, prompt
        self.start, self.options, self.seed = start, options, seed_of(prompt, options)
        self._position, self._served = position, served
        room = engine.max_model_len - len(prompt.token_ids) - len(start)
        self._length = longest_answer(prompt, options, room)
        self._vote_tokens = min(options.vote_tokens, room)
        self._by_votes = any(reward.name == CONSISTENCY for reward, _ in scorer.rewards)
        self._budget = Budget(options.budget_tokens, options.deadline_s)
        self._pool: list[Generation] = []
        self._opening: tuple[list[Generation], list[Generation]] = [], []
        """Answers before any step: of no latent, and of the one that would be served."""
        self._plain: Candidate | None = None
        self._as_served: Candidate | None = None
        self._best: Candidate | None = None
        self._candidates: list[Candidate] = []
        self._signals: frozenset[str] | None = None
        """Names of those that scored the first answers."""
        self._unavailable: tuple[str, ...] = ()
        self._since_better = 0
        self._steps: list[Step] = []
        self._prompt_read = False
        self._next_seed = self.seed

    async def run(self, search: Search) -> SearchResult:
        """Let answers vote, let a search take its steps, and return what was found.

        Raises:
            EngineError, LatentRejectedError: before the first answer was scored.
            UnsupportedError: at any time.
        """
        stopped: Stopped = "steps"
        try:
            with span("votes"):
                await self._open()
            await search.run(self)
        except SessionEndedError as ended:
            stopped = ended.reason
        except (EngineError, LatentRejectedError) as error:
            if self._best is None or isinstance(error, UnsupportedError):
                raise
            logger.warning("a search ends with its best so far: %s: %s", type(error).__name__, error)
            stopped = "engine-error"
        return self._result(stopped)

    async def _open(self) -> None:
        """Decode and score greedy answers of both sides and of the start, with sampled rollouts that vote.

        The unsteered model votes, and on equal terms the latent that would be served: what the model says
        today shall have a vote, and shall not be the only one to have it. Of each side that votes the greedy
        answer does, too; with one vote more, a side would look better than it is. A start that is neither is
        looked at where steps begin there, and has no vote: untrained latents say odd things.

        Raises:
            SessionEndedError: no budget or time for it, or already perfect.
        """
        sides = self._sides()
        greedy = [*sides]
        if self.options.steps and self.start is not self._served:
            greedy.append(self.start)
        left = self._budget.left
        if left is not None:  # the least that can be compared: one vote would agree with nothing
            self._length = min(self._length, left // (len(greedy) + min(2, self.options.votes)))
        if self._length < 1:
            raise SessionEndedError("budget")
        voters = self._voters(None if left is None else left - len(greedy) * self._length)
        latents = [*greedy, *(side for side, _ in voters)]
        decodings = [*(self._greedy() for _ in greedy), *(decoding for _, decoding in voters)]
        ended: dict[int, Generation] = {}
        voting = {*range(len(sides)), *range(len(greedy), len(latents))}
        try:
            answers = await self._generate(latents, decodings, finished=ended.__setitem__)
            self._pool = [answer for at, answer in enumerate(answers) if at in voting]
            for at, side in enumerate(sides):
                self._opening[at].extend(
                    answer for one, answer in zip(latents, answers, strict=True) if one is side
                )
            opened = await self._score(answers, latents, refined=False)
        except SessionEndedError:
            await self._make_do(latents, {at: ended[at] for at in sorted(voting & ended.keys())})
            raise
        self._plain = self._best = opened[0]
        self._as_served = opened[1] if self._served is not None else None
        for one in opened[1 : len(greedy)]:
            self._keep(one)
        self._steps.append(Step(0, tuple(one.reward for one in opened[: len(greedy)]), self._best.reward))
        self._end_if_perfect()

    async def _make_do(self, latents: Sequence[torch.Tensor | None], ended: Mapping[int, Generation]) -> None:
        """Let those answers vote that had ended by the deadline. They compare no sides, and teach nothing.

        A verifier is not asked any more; where votes do not count, nothing tells which answer to give.
        """
        if not self._by_votes:
            return
        self._pool = list(ended.values())
        scorer = Scorer(
            [(reward, weight) for reward, weight in self._scorer.rewards if reward.name != VERIFIER]
        )
        scores = await scorer.score(self._prompt, self._pool, self._pool)
        await self._try(self._pool, [latents[at] for at in ended], scores, refined=False)

    def _sides(self) -> list[torch.Tensor | None]:
        """Return the latents that vote, None for no latent."""
        return [None] if self._served is None else [None, self._served]

    def _voters(self, left: int | None) -> list[tuple[torch.Tensor | None, Decoding]]:
        """Return the rollouts that vote, as many and as long ones of each side.

        Fewer when `left`, what the budget has for them, pays for fewer.
        """
        length, sides = self._length, self._sides()
        voters: list[tuple[torch.Tensor | None, Decoding]] = []
        for _ in range(self.options.votes // len(sides)):
            tokens = max(length, self._vote_tokens)
            if left is not None:
                owed = max(0, 2 - len(voters) - len(sides)) * length  # to the second vote
                tokens = max(length, min(tokens, (left - owed) // len(sides)))
                left -= tokens * len(sides)
                if left < 0:
                    break
            voters += [(side, replace(self._sampled(), max_tokens=tokens)) for side in sides]
        return voters

    async def candidates(self, latents: Sequence[torch.Tensor]) -> list[float]:
        """Decode and score the greedy answer to each latent, and return rewards; the best is kept.

        Raises:
            SessionEndedError: no time for it. The caller has asked `affordable` before.
        """
        rewards, _ = await self._answer(latents, [])
        return rewards

    async def rollouts(self, latent: torch.Tensor, count: int) -> Rollouts:
        """Sample and score `count` answers to one latent. They are luck, so none makes it the best latent.

        Raises:
            SessionEndedError: no time for it. The caller has asked `affordable` before.
        """
        _, sampled = await self._answer([], [latent] * count)
        return sampled

    async def candidate_and_rollouts(self, latent: torch.Tensor, count: int) -> tuple[float, Rollouts]:
        """Do both for one latent, in one batch: its greedy answer, and `count` samples, which may be none.

        Raises:
            SessionEndedError: no time for it. The caller has asked `affordable` before.
        """
        rewards, sampled = await self._answer([latent], [latent] * count)
        return rewards[0], sampled

    async def _answer(
        self, judged: Sequence[torch.Tensor], sampled: Sequence[torch.Tensor]
    ) -> tuple[list[float], Rollouts]:
        latents = [*judged, *sampled]
        answers = await self._generate(
            latents, [*(self._greedy() for _ in judged), *(self._sampled() for _ in sampled)]
        )
        tried = await self._score(answers, latents, refined=True)
        for candidate in tried[: len(judged)]:
            self._keep(candidate)
        rewards = [one.reward for one in tried]
        return rewards[: len(judged)], Rollouts(answers[len(judged) :], rewards[len(judged) :])

    async def gradient(self, latent: torch.Tensor, told: Sequence[tuple[Generation, float]]) -> torch.Tensor:
        """Return Σ_b d(weight_b · log p_b)/dz, (L, d), for answers and their weights.

        log p is the log-probability of the whole answer: of being the one that is drawn among the request's
        choices where it has some, otherwise divided by the answers' mean length.

        Raises:
            SessionEndedError: no time for it.
            EngineError: the engine failed.
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
        result = await self._budget.in_time(self._engine.latent_gradient(prompts, labels, weights))
        # What stands before the latent runs forward only and once for all steps: decoding has counted it.
        behind = len(self._prompt.token_ids) - self._position + len(latent)
        self._budget.pass_through(3 * (behind * len(told) + sum(map(len, tokens))))
        return result.gradient.sum(dim=0)

    def affordable(self, wanted: int, *, least: int = 1, multiple: int = 1) -> int:
        """Return how many answers of full length the budget still pays for, at most `wanted`.

        Raises:
            SessionEndedError: fewer than `least`, in multiples of `multiple`.
        """
        return self._budget.affordable(self._length, wanted, least=least, multiple=multiple)

    def end_step(self, step: int, rewards: Sequence[float]) -> None:
        """Log a step.

        Raises:
            SessionEndedError: there is nothing more to gain.
        """
        assert self._best is not None
        best = self._best.reward
        self._since_better = 0 if best > self._steps[-1].best + MARGIN else self._since_better + 1
        self._steps.append(Step(step, tuple(rewards), best))
        self._end_if_perfect()
        if self._since_better >= PATIENCE:
            raise SessionEndedError("plateau")

    def _end_if_perfect(self) -> None:
        if self._best is not None and self._best.reward >= 1.0 - MARGIN:
            raise SessionEndedError("perfect")

    def _result(self, stopped: Stopped) -> SearchResult:
        elected = elect(self._prompt, self._candidates, self._pool, by_votes=self._by_votes)
        return SearchResult(
            stopped=stopped,
            plain=self._plain,
            served=self._as_served,
            best=self._best,
            elected=elected,
            example=shortest_of_the_surest(self._prompt, elected, self._candidates, self._engine.decode),
            plain_answers=self._opening[0],
            served_answers=self._opening[1],
            steps=tuple(self._steps),
            usage=self._budget.usage,
            unavailable=self._unavailable,
        )

    def _keep(self, candidate: Candidate) -> None:
        if self._best is None or candidate.reward > self._best.reward + MARGIN:
            self._best = candidate

    async def _generate(
        self,
        latents: Sequence[torch.Tensor | None],
        decodings: Sequence[Decoding],
        finished: Finished | None = None,
    ) -> list[Generation]:
        read, prompts = self._read(latents), [self._steered(latent) for latent in latents]
        try:
            answers = await self._budget.in_time(self._engine.generate(prompts, decodings, finished=finished))
        except (SessionEndedError, EngineError):
            # A batch that is cut short may have generated all of it.
            self._budget.spend(read, sum(decoding.max_tokens for decoding in decodings))
            raise
        self._budget.spend(read, sum(len(answer.token_ids) for answer in answers))
        return answers

    def _read(self, latents: Sequence[torch.Tensor | None]) -> int:
        """Return the prompt tokens to count.

        The prompt itself counts once in a session, for engines keep its KV cache; latents and what stands
        behind them for each.
        """
        length = len(self._prompt.token_ids)
        once = 0 if self._prompt_read else length
        self._prompt_read = True
        return once + sum(length - self._position + len(one) for one in latents if one is not None)

    async def _score(
        self, answers: Sequence[Generation], latents: Sequence[torch.Tensor | None], *, refined: bool
    ) -> list[Candidate]:
        """Score answers, by the signals of the first ones, and see which the request could be given.

        Raises:
            SessionEndedError: no time for it, or one of those signals cannot be had any more.
        """
        scores = await self._budget.in_time(
            self._scorer.score(self._prompt, answers, self._pool, only=self._signals)
        )
        missing = scores[0].unavailable
        self._unavailable = tuple(dict.fromkeys((*self._unavailable, *missing)))
        if self._signals is not None and missing:
            raise SessionEndedError("signal-lost")
        if self._signals is None:
            self._signals = frozenset(name for scored in scores for name in scored.signals)
        return await self._try(answers, latents, scores, refined=refined)

    async def _try(
        self,
        answers: Sequence[Generation],
        latents: Sequence[torch.Tensor | None],
        scores: Sequence[Scored],
        *,
        refined: bool,
    ) -> list[Candidate]:
        """Note answers that were scored, and which of them the request could be given."""
        if all(FORMAT in scored.signals for scored in scores):
            in_form = [scored.signals[FORMAT] == 1.0 for scored in scores]
        else:  # outside of the deadline: it would throw away scores that are there
            in_form = await are_in_form(self._prompt, answers)
        tried = [
            Candidate(answer, scored, latent, refined, kept and self._fits(answer))
            for answer, scored, latent, kept in zip(answers, scores, latents, in_form, strict=True)
        ]
        self._candidates += tried
        return tried

    def _fits(self, answer: Generation) -> bool:
        return answer.finish_reason == "stop" and len(answer.token_ids) <= self._length

    def _steered(self, latent: torch.Tensor | None) -> SteeredPrompt:
        position = None if latent is None else self._position
        return SteeredPrompt(self._prompt.token_ids, latent, position)

    def _greedy(self) -> Decoding:
        return replace(
            self._prompt.decoding, max_tokens=self._length, temperature=0.0, seed=None, logprobs=True
        )

    def _sampled(self) -> Decoding:
        self._next_seed = (self._next_seed + 1) % 2**32
        return replace(self._greedy(), temperature=ROLLOUT_TEMPERATURE, seed=self._next_seed)
