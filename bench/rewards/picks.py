"""One answer per question out of its samples.

Owns the ways to choose and how often each is right. A tie counts as the mean of the tied answers, so that
no way gains by the order of the samples. Knows nothing of where values come from.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from bench.rewards.answers import Answers
from bench.statistics import Floats, Ints


def greedy(answers: Answers) -> Floats:
    """Return by question whether the greedy answer is right, (Q,)."""
    return answers.right[answers.greedy].astype(np.float64)


def any_sample(answers: Answers) -> Floats:
    """Return the share of right samples, (Q,): a sample taken at random."""
    return np.array([answers.right[mine].mean() for mine in _samples(answers)])


def majority(answers: Answers) -> Floats:
    """Return the share of right samples among those with the most frequent answer, (Q,)."""
    found = []
    for mine in _samples(answers):
        votes = [answers.votes[index] for index in mine]
        counted = Counter(vote for vote in votes if vote is not None)
        most = max(counted.values(), default=0)
        chosen = [index for index, vote in zip(mine, votes, strict=True) if vote and counted[vote] == most]
        found.append(answers.right[chosen or mine].mean())
    return np.array(found)


def any_right(answers: Answers) -> Floats:
    """Return whether any sample is right, (Q,): an oracle, what no way of choosing can beat."""
    return np.array([float(answers.right[mine].any()) for mine in _samples(answers)])


def best(answers: Answers, values: Floats) -> Floats:
    """Return the share of right samples among those of the highest value, (Q,).

    Where no sample has a value, nothing is chosen: a sample at random.
    """
    found = []
    for mine in _samples(answers):
        valued = mine[~np.isnan(values[mine])]
        chosen = valued[values[valued] == values[valued].max()] if len(valued) else mine
        found.append(answers.right[chosen].mean())
    return np.array(found)


def _samples(answers: Answers) -> Iterator[Ints]:
    """Yield the numbers of each question's samples."""
    for number in range(len(answers.rows)):
        yield np.flatnonzero((answers.question == number) & ~answers.greedy)
