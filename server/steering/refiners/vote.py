"""The search without latents of its own: answers of the model vote.

Self-consistency (arXiv 2203.11171) on equal terms with the latent that would be served, if there is one. Owns
nothing but that no steps are taken.
"""

from dataclasses import replace
from typing import Literal

import torch

from model.engine import Engine
from server.steering.call import RenderedPrompt
from server.steering.refiners.refiner import Limits, RefineResult
from server.steering.refiners.steady import run_steadily
from server.steering.refiners.trial import Trial
from server.steering.rewards.scorer import Scorer


class Vote:
    """Samples answers and gives the one that most agree with."""

    name: Literal["vote"] = "vote"

    def __init__(self, engine: Engine, scorer: Scorer) -> None:
        self._engine, self._scorer = engine, scorer

    async def refine(
        self, prompt: RenderedPrompt, start: torch.Tensor, position: int, limits: Limits
    ) -> RefineResult:
        """See `Refiner.refine`; steps are left out."""
        votes = replace(limits, steps=0)
        return await run_steadily(self._engine, self._scorer, prompt, start, position, votes, _no_steps)


async def _no_steps(trial: Trial) -> None:
    """Leave it at the votes that a trial opens with."""
