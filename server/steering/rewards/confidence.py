"""How sure the model is of its own words, the signal of LTPO (arXiv 2510.04182).

Owns the mapping from log-probabilities to [0, 1]. Needs no decoding of its own.

LTPO averages the log-probabilities of the k likeliest tokens at each position. From k = 2 on that mean
turns round: it is at most −log k, reached when k tokens are equally likely, and far below when one token
is certain, so its exponential would reward hesitation. Here it is the log-probability of the token that
was chosen: the same as k = 1 for a greedy answer, and under a grammar how much the model wanted what the
grammar made it say.
"""

import math
from collections.abc import Sequence

from model.engine import Generation
from server.steering.call import RenderedPrompt


class Confidence:
    """exp of the mean log-probability per answer token; 0 for an empty answer."""

    name = "confidence"
    tokens_per_answer = 0

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one confidence per answer; None where the engine gave no log-probabilities."""
        return [confidence(answer) for answer in answers]


def confidence(answer: Generation) -> float | None:
    """Return exp of the mean log-probability of an answer's tokens, in [0, 1]; 0 where it is empty.

    None where the engine gave no log-probabilities.
    """
    if not answer.text.strip():
        return 0.0  # ending at once is often the surest thing a model can do
    if not answer.logprobs:
        return None
    mean = math.fsum(answer.logprobs) / len(answer.logprobs)
    return min(1.0, math.exp(mean)) if math.isfinite(mean) else 0.0
