"""Weights that the rows speak for.

Owns the grid and the check by leaving questions out: the best of hundreds of weightings looks better on the
rows that chose it than it is. Knows nothing of settings in force.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.bootstrap import Interval, interval
from bench.rewards.answers import Answers
from bench.rewards.discrimination import by_question

STEPS = 4
"""Weights are 0, ¼, ½, ¾ and 1."""


@dataclass(frozen=True)
class Suggestion:
    """The weights with the best AUC within questions: to be tried, not proven."""

    weights: Mapping[str, float]
    setting: str
    """As the setting `rewards` spells them."""
    seen: float
    """AUC within questions on the rows that chose them: too good."""
    unseen: Interval | None
    """AUC within each question under the weights that the other questions choose; None for one question."""
    questions: int
    """Those with right and wrong answers."""


def suggest(answers: Answers) -> Suggestion | None:
    """Return the best weights of the grid; None when no question has right and wrong answers.

    Of equally good ones those of fewer signals.
    """
    names = list(answers.signals)
    weightings = grid(len(names))
    values = np.stack([answers.quality(_named(names, weights)) for weights in weightings])  # (W, N)
    aucs = by_question(values, answers.right, answers.question).round(12)  # (W, Q')
    questions = aucs.shape[1]
    if not questions:
        return None
    totals = aucs.sum(axis=1)
    chosen = int(np.argmax(totals.round(9)))
    unseen = None
    if questions > 1:
        others = (totals[:, None] - aucs).round(9)  # (W, Q'), without the question itself
        unseen = interval(aucs[np.argmax(others, axis=0), np.arange(questions)])
    weights = _named(names, weightings[chosen])
    return Suggestion(
        weights=weights,
        setting=",".join(f"{name}={weight:g}" for name, weight in weights.items()),
        seen=float(totals[chosen] / questions),
        unseen=unseen,
        questions=questions,
    )


def grid(signals: int) -> list[tuple[float, ...]]:
    """Return the weightings that differ in more than scale, those of fewer signals first."""
    found: dict[tuple[int, ...], tuple[float, ...]] = {}
    for levels in itertools.product(range(STEPS, -1, -1), repeat=signals):
        if any(levels):
            divisor = math.gcd(*levels)
            found.setdefault(tuple(n // divisor for n in levels), tuple(n / STEPS for n in levels))
    return sorted(found.values(), key=lambda weights: sum(weight > 0 for weight in weights))


def _named(names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    return {name: weight for name, weight in zip(names, weights, strict=True) if weight}
