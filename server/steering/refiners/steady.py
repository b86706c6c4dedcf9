"""Rewards of one refinement that can be compared with each other.

Owns what becomes of a signal that cannot be had all the way: Q without a verifier that had said 0 would
look like an improvement. And what the model read to score, for the account of every search. Knows nothing
of which signals there are.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

import torch

from model.engine import Engine, Generation, Usage
from server.steering.call import RenderedPrompt
from server.steering.refiners.refiner import Limits, RefineResult
from server.steering.refiners.trial import Trial, TrialEndedError
from server.steering.rewards.scorer import Scored, Scorer


class SteadyScorer(Scorer):
    """A scorer for one refinement, of which every score is made of the signals of the first ones."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer.rewards)
        self._scored = False
        self._applied: frozenset[str] = frozenset()
        self._silent: frozenset[str] = frozenset()
        self.unavailable: tuple[str, ...] = ()
        """Signals that should have applied and could not be had, in the end or all along."""
        self.usage = Usage()
        """Prompts of the signals that ask the model; what those generate is `tokens_per_answer`."""

    async def score(
        self,
        prompt: RenderedPrompt,
        answers: Sequence[Generation],
        pool: Sequence[Generation],
        *,
        without: Collection[str] = (),
        applied: Collection[str] = (),
    ) -> list[Scored]:
        """Return scores; a signal that was not there or had nothing to say at first is left out from then on.

        Raises:
            EngineError: a signal asked the model and the engine failed.
            TrialEndedError: a signal of the first scores cannot be had any more.
        """
        known = {*self.unavailable, *without}
        read = self.prompt_tokens(prompt, answers, known | self._silent)
        self.usage += Usage(prompt_tokens=read, forward_tokens=read)
        scores = await super().score(
            prompt, answers, pool, without=known | self._silent, applied=self._applied | {*applied}
        )
        named = dict.fromkeys(name for scored in scores for name in scored.unavailable)
        missing = tuple(name for name in named if name not in self._silent)
        lost = self._scored and not known.issuperset(missing)
        if scores and not self._scored:
            self._applied = frozenset(name for scored in scores for name in scored.signals)
            self._silent = frozenset(r.name for r, _ in self.rewards) - self._applied - {*missing}
        self.unavailable, self._scored = missing, self._scored or bool(scores)
        if lost:
            raise TrialEndedError("signal-lost")
        return scores


async def run_steadily(
    engine: Engine,
    scorer: Scorer,
    prompt: RenderedPrompt,
    start: torch.Tensor,
    position: int,
    limits: Limits,
    search: Callable[[Trial], Awaitable[None]],
) -> RefineResult:
    """Return what a search finds from `start`, (L, d), with rewards that compare, and all that it spent.

    Raises:
        EngineError, LatentRejectedError, UnsupportedError: as of `Trial.run`.
    """
    steady = SteadyScorer(scorer)
    trial = Trial(engine, steady, prompt, position, limits)
    result = await trial.run(start, lambda: search(trial))
    return replace(result, usage=result.usage + steady.usage, unavailable=steady.unavailable)
