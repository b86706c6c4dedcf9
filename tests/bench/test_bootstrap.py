"""Intervals of small paired samples."""

import math

import numpy as np
import pytest

from bench.bootstrap import grouped_means, interval

rng = np.random.default_rng(0)


def test_interval_holds_its_mean() -> None:
    found = interval(rng.normal(size=12))
    assert found.low < found.mean < found.high


def test_interval_narrows_with_more_observations() -> None:
    sample = rng.normal(size=200)
    small, large = interval(sample[:8]), interval(sample)
    assert large.high - large.low < (small.high - small.low) / 2


@pytest.mark.parametrize("n", [5, 8, 20])
def test_interval_covers_the_truth_about_as_often_as_it_says(n: int) -> None:
    """Plain percentiles reach 0.84 at n = 5."""
    hits = 0
    for number in range(150):
        found = interval(rng.normal(0.3, 1.0, size=n), seed=number)
        hits += found.low <= 0.3 <= found.high
    assert 0.86 <= hits / 150 <= 0.99


def test_no_difference_is_an_interval_of_zero() -> None:
    found = interval(np.zeros(10))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_five_observations_exclude_zero_when_they_agree() -> None:
    assert interval(np.array([0.5, 0.6, 0.7, 0.4, 0.9])).low > 0
    assert interval(np.array([0.5, 0.6, 0.7, 0.9, -0.5])).low <= 0


def test_one_observation_says_nothing() -> None:
    found = interval(np.array([3.0]))
    assert (found.mean, found.low, found.high) == (3.0, -math.inf, math.inf)


def test_interval_depends_on_the_seed_only() -> None:
    sample = rng.normal(size=9)
    assert interval(sample, seed=3) == interval(sample, seed=3)


def test_copies_of_an_observation_do_not_narrow_the_interval() -> None:
    values = rng.normal(size=5)
    copied = grouped_means(np.repeat(values, 20), np.repeat(np.arange(5), 20))
    np.testing.assert_allclose(copied, values)
