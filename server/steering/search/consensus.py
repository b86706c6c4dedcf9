"""What answers to one question agree on.

Owns who has a vote and what the consensus is. Knows nothing of how answers are decoded or what the consensus
is for.
"""

from collections import Counter
from collections.abc import Sequence

from model.engine import Generation
from model.final_answer import final_answer
from server.steering.prompt import RenderedPrompt

LEAST_VOTES = 2
"""One vote agrees with nobody."""


def said(prompt: RenderedPrompt, answer: Generation) -> str | None:
    """Return what an answer votes for; None of one that was cut off or says nothing to compare."""
    if answer.finish_reason == "length":
        return None
    return final_answer(answer.text, prompt.decoding.choices)


def counted(prompt: RenderedPrompt, answers: Sequence[Generation]) -> Counter[str]:
    """Return the votes of answers, by what they say."""
    return Counter(vote for answer in answers if (vote := said(prompt, answer)) is not None)


def leading(votes: Counter[str]) -> frozenset[str]:
    """Return what most votes are for, several where as many are; none where no two agree."""
    most = max(votes.values(), default=0)
    return frozenset(vote for vote, count in votes.items() if count == most and most >= LEAST_VOTES)
