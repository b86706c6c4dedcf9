"""Which of the answers that were tried is given, and which is remembered.

Owns both rules and their margins. Knows nothing of how answers are found.
"""

from collections.abc import Callable, Sequence

from model.engine import Generation
from model.final_answer import final_span
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.confidence import final_confidence
from server.steering.rewards.scorer import VERIFIER
from server.steering.search.consensus import counted, leading, said
from server.steering.search.result import Candidate

BETTER = 0.05
"""Least reward by which a refined answer must beat the best of those that voted."""

ALIKE = 0.1
"""Rewards this close together do not tell answers apart that say the same in the end: with the default
weights, one is said more surely than the other."""

AS_SURE = 0.05
"""Of answers that say the same, those are as good whose result is this close to the surest
(decisions/search.md)."""


def elect(
    prompt: RenderedPrompt, candidates: Sequence[Candidate], pool: Sequence[Generation], *, by_votes: bool
) -> Candidate | None:
    """Return the answer to give: of those that most votes are for the one of the highest reward.

    Where a verifier has its say, or votes are not what counts, the reward alone decides. One of a refined
    latent takes its place where it is better under the same votes, by a margin.

    Args:
        prompt: What was asked.
        candidates: What was tried.
        pool: The answers that vote.
        by_votes: Whether the operator's signals count votes.
    """
    able = [one for one in candidates if one.finished]
    if by_votes and not any(VERIFIER in one.scored.signals for one in able):
        first = leading(counted(prompt, pool))
        able = [one for one in able if said(prompt, one.answer) in first]
    voted = max((one for one in able if not one.refined), key=_reward, default=None)
    refined = max((one for one in able if one.refined), key=_reward, default=None)
    if voted is None or refined is None:
        return voted or refined
    return refined if refined.reward >= voted.reward + BETTER else voted


def shortest_of_the_surest(
    prompt: RenderedPrompt,
    elected: Candidate | None,
    candidates: Sequence[Candidate],
    decode: Callable[[Sequence[int]], str],
) -> Candidate | None:
    """Return the shortest answer that says what the elected one does, with a result as sure.

    What is remembered is what the night teaches: of two ways to the same result the shorter one costs less to
    serve, and ends more surely within what requests allow. But the shortest of all is often a guess that
    happened to agree: it leaves out what leads to the result, and is less sure (decisions/search.md).

    Args:
        prompt: What was asked.
        elected: The answer to give.
        candidates: What was tried.
        decode: Text of tokens.
    """
    if elected is None or (vote := said(prompt, elected.answer)) is None:
        return elected
    alike = [
        one
        for one in candidates
        if one.finished and one.reward >= elected.reward - ALIKE and said(prompt, one.answer) == vote
    ]
    choices = prompt.decoding.choices
    sure = [
        final_confidence(one.answer, decode, final_span(one.answer.text, choices)) or 0.0 for one in alike
    ]
    as_sure = [one for one, value in zip(alike, sure, strict=True) if value >= max(sure) - AS_SURE]
    return min(as_sure, key=lambda one: (len(one.answer.token_ids), -one.reward))


def _reward(candidate: Candidate) -> float:
    return candidate.reward
