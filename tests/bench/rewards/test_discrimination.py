"""AUC and shares, reckoned by hand and against the plain formula."""

import math

import numpy as np
import pytest

from bench.rewards.discrimination import by_question, pooled, share, within
from bench.stream.summary import auc


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
    assert by_question(np.full((2, 4), np.nan), right, np.array([0, 0, 1, 1])).shape == (2, 0)


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
