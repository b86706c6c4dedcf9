"""The search without gradients: antithetic candidates, each decoded by the engine in one batch.

Owns the search. Works with quantised weights, tensor parallelism and any backend, for it only needs
answers. After "Evolution Strategies as a Scalable Alternative to RL" (arXiv 1703.03864): rank weights,
mirrored noise.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from server.spans import span
from server.steering.search.session import Session
from server.steering.search.trust_region import RADIUS, project

NOISE = 0.5
"""Measured on SmolLM2-135M from the neutral start (newlines, L = 16, 6 prompts, 6 candidates each): at 0.1 no
greedy answer changed, at 0.2 one in nine, at 0.4 three in ten, at 0.8 nine in ten."""


class Evolution:
    """Moves a latent along the noise that raised the reward.

    Args:
        noise: Norm of one candidate's distance from the centre, relative to the norm of the start.
        radius: Longest way from the start, relative to its norm (the trust region).
    """

    name: Literal["evolution"] = "evolution"

    def __init__(self, *, noise: float = NOISE, radius: float = RADIUS) -> None:
        self._noise, self._radius = noise, radius

    async def run(self, session: Session) -> None:
        """See `Search.run`."""
        generator = torch.Generator().manual_seed(session.seed)
        start = centre = session.start
        distance = self._noise * float(start.norm())
        for step in range(1, session.options.steps + 1):
            count = session.affordable(session.options.population, least=2, multiple=2)
            half = torch.randn(count // 2, *start.shape, generator=generator)  # (P/2, L, d)
            half *= distance / half.flatten(1).norm(dim=1)[:, None, None]
            noise = torch.cat([half, -half])  # (P, L, d)
            latents = [project(centre + offset, start, self._radius) for offset in noise]
            with span("step", latentevolve__step=step):
                rewards = await session.candidates(latents)
            session.end_step(step, rewards)
            direction = torch.einsum("p,pld->ld", rank_weights(rewards), noise)
            norm = float(direction.norm())
            if norm > 0:
                centre = project(centre + direction * (distance / norm), start, self._radius)


def rank_weights(rewards: Sequence[float]) -> torch.Tensor:
    """Return weights in [−½, ½] by rank, (P,), which sum to 0; equal rewards weigh the same.

    Ranks, so that one outlier does not set the step's direction; ties shared, so that rewards that are
    all the same move nothing.
    """
    values = torch.tensor(rewards)
    below = (values[:, None] > values[None, :]).sum(dim=1).float()
    equal = (values[:, None] == values[None, :]).sum(dim=1).float()
    ranks = below + (equal - 1) / 2  # mean rank among equals, 0 … P−1
    return ranks / max(1, len(rewards) - 1) - 0.5
