"""How well values tell right answers from wrong ones.

Owns AUC over all answers and within questions, and shares of right answers, with 95 % bootstrap intervals
over questions: answers to one question are no independent observations. NaN: no value, left out.
"""

import math

import numpy as np

from bench.bootstrap import Interval, interval
from bench.rewards.answers import Bools, Floats, Ints

RESAMPLES = 4_000
LEVEL = 0.95


def pooled(values: Floats, right: Bools, question: Ints, seed: int = 0) -> Interval | None:
    """Return AUC over all answers: the chance that a right one has a higher value than a wrong one.

    None without right and wrong answers. Values of different questions are compared too.
    """
    there = ~np.isnan(values)
    good, bad = there & right, there & ~right
    if not good.any() or not bad.any():
        return None
    numbers = np.unique(question[there])
    of_good = (question[good][None, :] == numbers[:, None]).astype(np.float64)  # (Q, G)
    of_bad = (question[bad][None, :] == numbers[:, None]).astype(np.float64)  # (Q, B)
    wins = of_good @ _wins(values[good], values[bad]) @ of_bad.T  # (Q, Q)
    goods, bads = of_good.sum(axis=1), of_bad.sum(axis=1)
    drawn = _drawn(len(numbers), seed)  # (R, Q)
    pairs = (drawn @ goods) * (drawn @ bads)
    above = ((drawn @ wins) * drawn).sum(axis=1)
    return _of(float(wins.sum() / (goods.sum() * bads.sum())), above, pairs, len(numbers))


def within(values: Floats, right: Bools, question: Ints) -> tuple[Interval | None, int]:
    """Return the mean of the questions' own AUC, and how many questions have right and wrong answers."""
    found = list(by_question(values[None, :], right, question)[0])
    return (interval(np.array(found)) if found else None), len(found)


def by_question(values: Floats, right: Bools, question: Ints) -> Floats:
    """Return AUC of each scoring, (W, N), on each question with right and wrong answers, (W, Q')."""
    there = ~np.isnan(values).any(axis=0)
    found = []
    for number in np.unique(question):
        mine = there & (question == number)
        good, bad = mine & right, mine & ~right
        if good.any() and bad.any():
            found.append(_wins(values[:, good], values[:, bad]).mean(axis=(1, 2)))
    return np.stack(found, axis=1) if found else np.zeros((len(values), 0))


def share(right: Bools, chosen: Bools, question: Ints, seed: int = 0) -> Interval | None:
    """Return the share of right answers among the chosen ones; None when there are none."""
    if not chosen.any():
        return None
    numbers, at = np.unique(question, return_inverse=True)
    hits = np.bincount(at, weights=right & chosen, minlength=len(numbers))
    of = np.bincount(at, weights=chosen, minlength=len(numbers)).astype(np.float64)
    drawn = _drawn(len(numbers), seed)
    return _of(float(hits.sum() / of.sum()), drawn @ hits, drawn @ of, int((of > 0).sum()))


def _wins(good: Floats, bad: Floats) -> Floats:
    """Return 1 where the good value is higher, ½ where they are equal, (…, G, B)."""
    good, bad = good[..., :, None], bad[..., None, :]
    found: Floats = (good > bad) + 0.5 * (good == bad)
    return found


def _drawn(questions: int, seed: int) -> Floats:
    """Return how often each question is in each resample, (R, Q)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES).astype(np.float64)


def _of(mean: float, above: Floats, below: Floats, observations: int) -> Interval:
    """Return the interval of a ratio; resamples without a denominator say nothing."""
    if observations < 2:
        return Interval(mean, -math.inf, math.inf)
    said = below > 0
    low, high = np.quantile(above[said] / below[said], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))
