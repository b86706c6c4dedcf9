"""How sure the model is of its own words, the signal of LTPO (arXiv 2510.04182).

Owns the mapping from log-probabilities to [0, 1]. Needs no decoding of its own.
"""

import math
from collections.abc import Sequence

from model.engine import Generation
from server.steering.call import RenderedPrompt

TOP_K = 1
"""k of the mean top-k log-probability that refiners ask the engine for.

LTPO averages the log-probabilities of the k likeliest tokens at each position. At k = 1 that mean rises
with certainty and its exponential is the geometric mean of the largest probabilities, a number in (0, 1]
that can be read. From k = 2 on it turns round: at most −log k, reached when k tokens are equally likely,
and far below when one token is certain, so that its exponential would reward hesitation.
"""


class Confidence:
    """exp of the mean over answer tokens of the mean top-k log-probability; 0 for an empty answer."""

    name = "confidence"
    tokens_per_answer = 0

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one confidence per answer; None where the engine gave no log-probabilities."""
        return [self._score(answer) for answer in answers]

    @staticmethod
    def _score(answer: Generation) -> float | None:
        if not answer.text.strip():
            return 0.0  # ending at once is often the surest thing a model can do
        if not answer.top_logprobs:
            return None
        mean = math.fsum(answer.top_logprobs) / len(answer.top_logprobs)
        return min(1.0, math.exp(mean)) if math.isfinite(mean) else 0.0
