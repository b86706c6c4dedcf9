"""The paper's search: REINFORCE on the latent through the frozen model.

Owns the estimator and the optimiser. What LatentSeek and LTPO leave out is here: several rollouts per
step, a leave-one-out baseline, and the best latent returned instead of the last.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from server.spans import span
from server.steering.search.session import Rollouts, Session
from server.steering.search.trust_region import RADIUS, project


class Gradient:
    """Climbs the expected reward of sampled answers.

    Args:
        rate: Adam's step per element, relative to the root mean square of the start's elements.
        radius: Longest way from the start, relative to its norm (the trust region).
    """

    name: Literal["gradient"] = "gradient"

    def __init__(self, *, rate: float = 0.1, radius: float = RADIUS) -> None:
        self._rate, self._radius = rate, radius

    async def run(self, session: Session) -> None:
        """See `Search.run`."""
        latent, steps, population = session.start, session.options.steps, session.options.population
        climb = Adam(self._rate * float(latent.square().mean().sqrt()))
        sampled: Rollouts | None = None
        for step in range(1, steps + 1):
            with span("step", latentevolve__step=step):
                if sampled is None or not sampled.answers:
                    # One answer is kept for judging the step's own update, which would be wasted otherwise.
                    sampled = await session.rollouts(latent, session.affordable(population + 1, least=3) - 1)
                (answers, rewards), sampled = sampled, None
                told = [
                    (answer, weight / len(answers))
                    for answer, weight in zip(answers, advantages(rewards), strict=True)
                    if weight and answer.token_ids
                ]
                if told:
                    gradient = await session.gradient(latent, told)
                    latent = project(latent + climb.step(gradient), session.start, self._radius)
                    # The next step's rollouts are decoded with the answer that judges this one: decoding
                    # waits for the model's weights, so that one batch costs hardly more than one answer.
                    following = session.affordable(population + 2) - 2 if step < steps else 0
                    following = following if following > 1 else 0
                    judged, sampled = await session.candidate_and_rollouts(latent, following)
                    rewards = [*rewards, judged]
            session.end_step(step, rewards)


class Adam:
    """Adam (arXiv 1412.6980) for one tensor.

    Not torch's: its first step imports torch's compiler, which stops the event loop for seconds.
    """

    def __init__(self, rate: float, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self._rate, self._betas, self._epsilon = rate, betas, epsilon
        self._first = self._second = torch.zeros(())
        self._steps = 0

    def step(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the step uphill, of the gradient's shape."""
        self._steps += 1
        first, second = self._betas
        self._first = first * self._first + (1 - first) * gradient
        self._second = second * self._second + (1 - second) * gradient.square()
        mean = self._first / (1 - first**self._steps)
        square = self._second / (1 - second**self._steps)
        # Relative, for gradients of a mean likelihood with respect to embeddings may be as small as epsilon.
        floor = self._epsilon * float(square.sqrt().max())
        return self._rate * mean / (square.sqrt() + floor + torch.finfo(square.dtype).tiny)


def advantages(rewards: Sequence[float]) -> list[float]:
    """Return each reward less the mean of the others, divided by the standard deviation of all.

    All 0 when the rewards are all the same: nothing was learned.
    """
    values = torch.tensor(rewards, dtype=torch.float64)
    count = len(rewards)
    spread = float(values.std(correction=0)) if count > 1 else 0.0
    if spread < 1e-6:
        return [0.0] * count
    centred = (values - values.mean()) * (count / (count - 1))  # r_i − mean of the others
    return [float(value) for value in centred / spread]
