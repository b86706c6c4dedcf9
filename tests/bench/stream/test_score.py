"""Whether an answer is right."""

import pytest

from bench.stream.questions import Scorer
from cli.demonstration.stream import Item

SEVEN = Item("How many?", 7)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 + 4 = 7, so \\boxed{7}", True),
        ("\\boxed{7.0}", True),
        ("so \\boxed{\\text{7 apples}}", True),
        ("3 + 4 = 7", False),
        ("\\boxed{8}, or rather 7", False),
        ("\\boxed{7} and then \\boxed{8}", False),
        ("cut off at \\boxed{7", False),
        ("", False),
    ],
)
def test_number_must_be_in_the_last_box_where_one_is_asked_for(text: str, right: bool) -> None:
    assert Scorer([SEVEN], box=True).correct(text, SEVEN) is right


@pytest.mark.parametrize(
    ("text", "right"), [("3 + 4 = 7", True), ("\\boxed{7}", True), ("7 of 9", False), ("seven", False)]
)
def test_last_number_counts_without_a_box(text: str, right: bool) -> None:
    assert Scorer([SEVEN], box=False).correct(text, SEVEN) is right


def test_label_must_be_named_and_no_other() -> None:
    items = [Item("Which?", "World"), Item("Which?", "Sports")]
    scorer = Scorer(items, box=False)
    assert scorer.correct("It is world news.", items[0])
    assert not scorer.correct("World or Sports", items[0])
    assert not scorer.correct("Worldwide", items[0])
