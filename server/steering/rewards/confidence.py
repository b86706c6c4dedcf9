"""How sure the model is of its own words, the signal of LTPO (arXiv 2510.04182).

Owns the mapping from log-probabilities to [0, 1]. Needs no decoding of its own.

LTPO averages the log-probabilities of the k likeliest tokens at each position. From k = 2 on that mean
turns round: it is at most −log k, reached when k tokens are equally likely, and far below when one token
is certain, so its exponential would reward hesitation. Here it is the log-probability of the token that
was chosen: the same as k = 1 for a greedy answer, and under a grammar how much the model wanted what the
grammar made it say.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from model.engine import Generation
from server.steering.prompt import RenderedPrompt

Span = tuple[int, int]
Decode = Callable[[Sequence[int]], str]


class Confidence:
    """exp of the mean log-probability per answer token; 0 for an empty answer."""

    name = "confidence"

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one confidence per answer; None where the engine gave no log-probabilities."""
        return [confidence(answer) for answer in answers]


def final_confidence(answer: Generation, decode: Decode, span: Span) -> float | None:
    """Return exp of the mean log-probability of the tokens that `span` of a text touches, in [0, 1].

    A result that follows from what stands before it is nearly certain, and a guess is not (CoT-decoding,
    arXiv 2402.10200); the mean over all tokens grows with every certain word that is said besides.

    Args:
        answer: With its log-probabilities; None comes back without.
        decode: Text of tokens, as the answer's.
        span: First character, and the one behind the last; an empty one touches the token that it stands in.
    """
    told = answer.logprobs and len(answer.logprobs) == len(answer.token_ids)
    if not told or not decode(answer.token_ids).startswith(answer.text):
        return confidence(answer)  # nothing says where its tokens stand

    def length(count: int) -> int:
        return len(decode(answer.token_ids[:count]))

    counts = range(len(answer.token_ids) + 1)
    first = min(max(bisect.bisect_right(counts, span[0], key=length) - 1, 0), len(answer.token_ids) - 1)
    last = max(bisect.bisect_left(counts, span[1], key=length), first + 1)
    return confidence(replace(answer, logprobs=answer.logprobs[first:last]))


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
