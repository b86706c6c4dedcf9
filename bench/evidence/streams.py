"""Made-up differences of outcomes, of rows that do good, harm or nothing.

Owns the streams and the toy of a small night whose halves judge each other. Knows nothing of tests.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Differences = NDArray[np.float64]
Draw = Callable[[Generator, int], Differences]
"""Returns so many differences, (n,) in [-1, 1]."""

ANSWERS = 4
"""Answers to a prompt that make an outcome: three samples and the greedy one."""


def agreeing(share: float, without: float) -> Draw:
    """Return differences of rows whose answers agree with labels `share` instead of `without` of the time."""

    def outcome(rng: Generator, n: int, mean: float) -> Differences:
        likely = rng.beta(2 * mean, 2 * (1 - mean), n)  # prompts are unequal
        return np.asarray(rng.binomial(ANSWERS, likely) / ANSWERS)

    return lambda rng, n: outcome(rng, n, share) - outcome(rng, n, without)


def _in_a_row(rng: Generator, n: int) -> Differences:
    sizes = np.repeat(rng.random(n // 20 + 1), 20)[:n]
    return np.asarray(sizes * rng.choice([-1.0, 1.0], n))


def _sticky(rng: Generator, n: int) -> Differences:
    signs = np.cumprod(np.where(rng.random(n) < 0.6, 1.0, -1.0))
    return np.asarray(rng.choice([-1.0, 1.0]) * signs * rng.random(n))


NO_GOOD: Mapping[str, Draw] = {
    "as good, 40 % agree": agreeing(0.4, 0.4),
    "rare wins": lambda rng, n: np.where(rng.random(n) < 0.1, 0.9, -0.1),
    "rare losses": lambda rng, n: np.where(rng.random(n) < 0.1, -0.9, 0.1),
    "large ones in a row": _in_a_row,
    "alternating": lambda rng, n: np.tile([1.0, -1.0], n)[:n],
    "no difference": lambda rng, n: np.zeros(n),
}
"""Rows that do no good: whatever was seen, the next difference is zero in expectation or does not depend on
chance."""

OUTSIDE: Mapping[str, Draw] = {"wins in a row": _sticky}
"""Zero on average, but in 60 % of cases a win is followed by a win: here the test promises nothing."""

GOOD: Mapping[str, Draw] = {
    "60 for 20 % agree": agreeing(0.6, 0.2),
    "40 for 20 %": agreeing(0.4, 0.2),
    "50 for 40 %": agreeing(0.5, 0.4),
    "choices, +0.13 ± 0.2": lambda rng, n: np.clip(rng.normal(0.13, 0.2, n), -1, 1),
}

HARM: Mapping[str, Draw] = {"20 for 40 %": agreeing(0.2, 0.4), "40 for 50 %": agreeing(0.4, 0.5)}


class Answered(NamedTuple):
    """Prompts that were answered with a row and without it, (n,) each."""

    measured: Differences
    """Difference by the label."""
    true: Differences
    """Difference by what is right."""
    wrong_with: NDArray[np.bool_]
    wrong_without: NDArray[np.bool_]


def answered(
    share: float, without: float, label: tuple[float, float] | None = None
) -> Callable[[Generator, int], Answered]:
    """Return prompts that are answered right `share` instead of `without` of the time.

    The label is right, or else agrees with so many answers of both, whatever is right.
    """

    def draw(rng: Generator, n: int) -> Answered:
        right, right_without = (rng.random(n) < mean for mean in (share, without))
        true = right.astype(float) - right_without
        measured = true
        if label is not None:
            measured = (rng.random(n) < label[0]).astype(float) - (rng.random(n) < label[1])
        return Answered(measured, true, ~right, ~right_without)

    return draw


TOLD: Mapping[str, Callable[[Generator, int], Answered]] = {
    "as good, labels are right": answered(0.4, 0.4),
    "as good, labels are chance": answered(0.4, 0.4, (0.4, 0.4)),
    "better, labels are right": answered(0.6, 0.4),
    "better, labels are chance": answered(0.6, 0.4, (0.4, 0.4)),
    "worse, labels praise it": answered(0.3, 0.5, (0.6, 0.4)),
}
"""Rows of whose answers people say something."""


def halves(rng: Generator, prompts: int, features: int, signal: float) -> tuple[Differences, Differences]:
    """Return the differences of a night whose halves are judged by what was learned of the other half.

    The label of a prompt is one of two answers, by its features as far as there is a `signal`. Ridge
    regression learns them, or which is more frequent where there are no features. The model says either.
    """
    x = np.column_stack([rng.normal(size=(prompts, features)), np.ones(prompts)])
    likely = 1 / (1 + np.exp(-signal * x[:, 0])) if features else np.full(prompts, 0.5)
    label = rng.random(prompts) < likely
    half = np.arange(prompts) < prompts // 2

    def judged(train: NDArray[np.bool_]) -> Differences:
        seen = x[train]
        weights = np.linalg.solve(
            seen.T @ seen + np.eye(features + 1), seen.T @ np.where(label[train], 1, -1)
        )
        right = (x[~train] @ weights > 0) == label[~train]
        return np.asarray(right - rng.binomial(ANSWERS, 0.5, len(right)) / ANSWERS)

    return judged(~half), judged(half)
