"""Where a candidate may speak, and how near a neighbour must be to be recalled.

Owns how much of the hold-out both must hold. The region itself, centroids and a least cosine, is
`memory/prior.py`'s.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memory.episode import Episode
from memory.prior import DEFAULT_FLOOR, Competence
from worker.neighbourhood import stack_keys

LEFT_OUT = 0.05
"""Share of the hold-out that may lie outside, rounded down: of few episodes none."""

FARTHER = 1.5
"""How many times as far from the training keys as the hold-out a prior may speak: 1 − cosine (ADR 0017)."""

_ROUNDING = 1e-5
"""The same cosine computed one by one and as a matrix differs in the last digits."""


def region(train: Sequence[Episode], holdout: Sequence[Episode], seed: int) -> Competence:
    """Return the region around the training keys, `FARTHER` times as wide as most of the hold-out needs.

    What was remembered is what was easy, and other requests of the same workload lie farther away. Never
    wider than the least cosine of `Competence.fit`, so a scattered hold-out can stay outside.
    """
    fitted = Competence.fit(stack_keys(train), stack_keys(holdout), quantile=_quantile(holdout), seed=seed)
    threshold = max(1 - FARTHER * (1 - float(np.min(fitted.threshold))), DEFAULT_FLOOR)
    return replace(fitted, threshold=threshold - _ROUNDING)


def recall_floor(train: Sequence[Episode], holdout: Sequence[Episode]) -> float:
    """Return the cosine to the nearest training key that (1 − `LEFT_OUT`) of the hold-out's reach.

    Never less than that of `Competence.fit`. What is less similar than requests of this workload are to each
    other tells nothing of a request.
    """
    nearest = (stack_keys(holdout) @ stack_keys(train).T).max(axis=1)
    return max(DEFAULT_FLOOR, float(np.quantile(nearest, _quantile(holdout))) - _ROUNDING)


def _quantile(holdout: Sequence[Episode]) -> float:
    """Return the quantile that is exactly the smallest value but `LEFT_OUT` of the hold-out."""
    return math.floor(LEFT_OUT * len(holdout)) / max(len(holdout) - 1, 1)
