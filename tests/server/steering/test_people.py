"""What people say of answers, as a bound of what was measured."""

from typing import Any

import numpy as np
import pytest

from memory.state import Feedback
from server.steering.outcome import Answer, Asked
from server.steering.people import Graded, Word

ROW, BASELINE = ("4", "4", "4", "5", None), ("4", "5", "5", "7", "7")


@pytest.mark.parametrize(
    ("word", "most"),
    [
        (Word("4", right=True), 0.4),
        (Word("5", right=True), -0.2),
        (Word("unheard of", right=True), 0.0),
        (Word("4", right=False), 0.0),  # 5 or 7 may be right, or none of them
        (Word("5", right=False), 0.4),
        (Word("unheard of", right=False), 0.4),
    ],
)
def test_a_word_leaves_the_row_the_most_that_fits_it(word: Word, most: float) -> None:
    assert Graded(ROW, BASELINE).most(word) == pytest.approx(most)
    assert Graded.of_json(Graded(ROW, BASELINE).to_json()) == Graded(ROW, BASELINE)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_right_a_word_that_is_true_of_it_leaves_room_for_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers = ["4", "5", "7", None]
    graded = Graded(*(tuple(answers[at] for at in rng.integers(4, size=5)) for _ in range(2)))
    for right in ("4", "5", "7", "9"):
        truth = graded.most(Word(right, right=True))
        assert -1 <= truth <= 1
        for wrong in {"4", "5", "7", "9"} - {right}:
            assert graded.most(Word(wrong, right=False)) >= truth


def said(metric: str, value: Any) -> Feedback:
    return Feedback("f", "t", metric, value)


@pytest.mark.parametrize(
    ("feedback", "word"),
    [
        (said("rating", True), Word("4", right=True)),
        (said("rating", 0.7), Word("4", right=True)),
        (said("rating", False), Word("4", right=False)),
        (said("demonstration", "I get 12"), Word("12", right=True)),
        (said("demonstration", "a long text of words alone in which nothing is to be compared"), None),
        (said("comment", "it is 12"), None),
    ],
)
def test_feedback_is_a_word_about_a_final_answer(feedback: Feedback, word: Word | None) -> None:
    asked = Asked("p", (1,), "how many?", (), 10)
    assert Word.of(feedback, asked, Answer((2,), "so it is 4", finished=True)) == word
    cut, none = Answer((2,), "so it is 4", finished=False), None
    for answer in (cut, none):
        found = Word.of(feedback, asked, answer)
        assert found == (word if feedback.metric_name == "demonstration" else None)


def test_of_a_request_held_to_choices_only_choices_count() -> None:
    asked = Asked("p", (1,), "how many?", ("grade 3, urgent", "grade 3"), 10)
    told = Word.of(said("rating", True), asked, Answer((2,), "grade 3, urgent", finished=True))
    assert told == Word("grade 3, urgent", right=True)
    assert Word.of(said("demonstration", "grade 4"), asked, None) is None
