"""Intervals of small paired samples, ratios, and how well values tell right from wrong."""

import math

import numpy as np
import pytest

from bench.result import finite
from bench.statistics import (
    auc,
    grouped_means,
    interval,
    pooled,
    quantiles_ms,
    ratio,
    ratio_text,
    reliability,
    share,
    wilson,
    within,
)

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


def test_quantiles_are_in_milliseconds() -> None:
    found = quantiles_ms([n / 1000 for n in range(1, 101)])
    assert found["n"] == 100
    assert found["median_ms"] == pytest.approx(50.5)
    assert found["median_ms"] < found["p95_ms"] < found["p99_ms"] <= 100


def test_ratio_is_paired_and_the_same_both_ways() -> None:
    above, below = [2.0, 8.0, 4.5, 4.0], [1.0, 2.0, 1.5, 2.0]
    there, back = ratio(above, below), ratio(below, above)
    assert there["ratio"] == pytest.approx(1 / back["ratio"])
    assert there["low"] <= there["ratio"] <= there["high"]
    assert there["n"] == 4


def test_same_ratio_in_every_round_leaves_no_doubt() -> None:
    found = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found["low"] == pytest.approx(2.0)
    assert found["high"] == pytest.approx(2.0)


def test_one_round_has_no_interval() -> None:
    found = ratio([3.0], [2.0])
    assert finite(found) == {"ratio": pytest.approx(1.5), "low": None, "high": None, "n": 1}
    assert ratio_text(found) == "1.50"


def test_auc_of_a_small_example() -> None:
    # Right: 0.9, 0.5. Wrong: 0.5, 0.1. Of 4 pairs 3 are in order and one is a tie.
    assert auc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == 3.5 / 4
    assert auc([0.1, 0.9], [True, False]) == 0.0


@pytest.mark.parametrize("right", [[True, True], [False, False], []])
def test_auc_needs_right_and_wrong_ones(right: list[bool]) -> None:
    assert auc([0.5] * len(right), right) is None


def test_pooled_auc_is_the_plain_one() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 6, size=60) / 5  # with ties
    right = rng.random(60) < 0.3 + 0.4 * values
    question = np.repeat(np.arange(12), 5)
    found = pooled(values, right, question)
    assert found is not None
    assert found.mean == pytest.approx(auc(values.tolist(), right.tolist()))
    assert found.low < found.mean < found.high


def test_auc_within_questions_ignores_that_some_questions_are_easier() -> None:
    # Values tell which question it is, and say the opposite of the truth inside each.
    values = np.array([0.1, 0.2, 0.2, 0.8, 0.9, 0.9])
    right = np.array([True, False, False, True, True, False])
    question = np.array([0, 0, 0, 1, 1, 1])
    found, questions = within(values, right, question)
    assert questions == 2
    assert found is not None
    assert found.mean == pytest.approx((0 + 0.25) / 2)  # in the second: a loss, and a tie
    over_all = pooled(values, right, question)
    assert over_all is not None
    assert over_all.mean > found.mean


def test_questions_without_right_or_wrong_answers_say_nothing_within() -> None:
    values, question = np.array([0.1, 0.9, 0.3, 0.4]), np.array([0, 0, 1, 1])
    found, questions = within(values, np.array([True, True, True, False]), question)
    assert questions == 1
    assert found is not None
    assert found.mean == 0.0
    assert within(values, np.array([True, True, False, False]), question) == (None, 0)


def test_answers_without_a_value_are_left_out() -> None:
    values = np.array([np.nan, 0.9, 0.1, np.nan])
    right = np.array([False, True, False, True])
    found = pooled(values, right, np.array([0, 0, 1, 1]))
    assert found is not None
    assert found.mean == 1.0
    assert pooled(np.full(4, np.nan), right, np.array([0, 0, 1, 1])) is None


def test_more_answers_to_the_same_questions_make_no_interval_narrower() -> None:
    rng = np.random.default_rng(2)
    values, question = rng.random(40), np.repeat(np.arange(10), 4)
    right = rng.random(40) < 0.5
    once = pooled(values, right, question)
    often = pooled(np.tile(values, 5), np.tile(right, 5), np.tile(question, 5))
    assert once is not None
    assert often is not None
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_one_question_has_no_interval() -> None:
    found = pooled(np.array([0.1, 0.9]), np.array([False, True]), np.array([0, 0]))
    assert found is not None
    assert (found.mean, found.low, found.high) == (1.0, -math.inf, math.inf)


def test_share_is_of_the_chosen_answers() -> None:
    right = np.array([True, False, True, True, False, False])
    chosen = np.array([True, True, True, False, False, False])
    found = share(right, chosen, np.array([0, 0, 1, 1, 2, 2]))
    assert found is not None
    assert found.mean == pytest.approx(2 / 3)
    assert found.low <= found.mean <= found.high
    assert share(right, np.zeros(6, dtype=bool), np.array([0, 0, 1, 1, 2, 2])) is None


def test_a_share_of_none_still_has_an_interval() -> None:
    found = wilson(np.zeros(20))
    assert (found.mean, found.low) == (0.0, 0.0)
    assert 0.1 < found.high < 0.2


def test_reliability_is_by_tenths_that_hold_any_value() -> None:
    x, y = reliability(np.array([0.05, 0.06, 0.95, 1.0]), np.array([False, True, True, True]))
    assert x.tolist() == pytest.approx([0.055, 0.975])
    assert y.tolist() == [0.5, 1.0]
