"""Confidence intervals of small paired samples.

Owns the bootstrap. Knows nothing of what is compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
_BLOCK = 1_000


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def grouped_means(values: NDArray[np.floating], groups: Sequence[int]) -> NDArray[np.float64]:
    """Return the mean of each group, (G,): what stands in one group is one observation."""
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(labels, weights=np.asarray(values, dtype=np.float64))
    means: NDArray[np.float64] = sums / np.bincount(labels)
    return means


def interval(observations: NDArray[np.floating], seed: int = 0) -> Interval:
    """Return mean and 95 % bootstrap interval of independent observations, (n,) with n ≥ 1.

    The percentiles are moved outwards to match a t interval (Hesterberg, arXiv 1411.5279: "expanded
    percentile interval"): plain percentiles of 95 % in name held the truth in 84 % of trials at n = 5,
    these in 92 %. One observation has no interval but everything.
    """
    n = len(observations)
    mean = float(np.mean(observations))
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    rng = np.random.default_rng(seed)
    values = np.asarray(observations, dtype=np.float64)
    means = np.concatenate(
        [values[rng.integers(n, size=(_BLOCK, n))].mean(axis=1) for _ in range(RESAMPLES // _BLOCK)]
    )
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _t_quantile((1 + LEVEL) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def _t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t (Abramowitz and Stegun 26.7.5): within 1 % from 3 degrees of freedom on,
    exact at 1 and 2."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        a = 2 * probability - 1
        return a * math.sqrt(2 / (1 - a * a))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))
