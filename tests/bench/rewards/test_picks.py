"""One answer out of several."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.rewards.summary import Answers, any_right, any_sample, best, greedy, majority
from tests.bench.rewards.conftest import row


def answered(question: str, *texts: str, cut: Sequence[int] = ()) -> dict[str, Any]:
    """Return a row of answers, of which "1" is right."""
    return row(question, [(text, text == "1", {}) for text in texts], cut=cut)


ROWS = [
    answered("first", "9", "1", "1", "2", "2 or", cut=(4,)),
    answered("second", "1", "3", "1", "4", "5"),
    answered("third", "1", "6", "6", "6", "7"),
]


def test_baselines_by_hand() -> None:
    answers = Answers.of(ROWS, [])
    assert greedy(answers).tolist() == [0, 1, 1]
    assert any_sample(answers).tolist() == [0.5, 0.25, 0]
    assert any_right(answers).tolist() == [1, 1, 0]  # the greedy answer is none of the samples
    # First: 1 has two votes, for the second 2 was cut off. Second: all four are tied.
    assert majority(answers).tolist() == [1, 0.25, 0]


def test_majority_without_votes_is_a_sample_at_random() -> None:
    answers = Answers.of(
        [row("q", [("1", True, {})] + [("a", n < 1, {}) for n in range(4)], cut=range(5))], []
    )
    assert majority(answers).tolist() == [0.25]


def test_best_takes_the_highest_value_among_samples_and_shares_ties() -> None:
    answers = Answers.of(ROWS[:2], [])
    values = np.array([1.0, 0.5, 0.2, 0.5, 0.1, 1.0, 0.1, 0.7, np.nan, 0.3])
    assert best(answers, values).tolist() == [0.5, 1.0]


def test_best_without_values_is_a_sample_at_random() -> None:
    answers = Answers.of(ROWS, [])
    assert best(answers, np.full(15, np.nan)).tolist() == any_sample(answers).tolist()
