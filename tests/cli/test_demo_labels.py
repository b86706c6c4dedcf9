"""Which of a night's labels are right."""

from cli.demonstration.labels import labels_right
from cli.demonstration.stream import Item

KNOWN = {"a": Item("q1", "World"), "b": Item("q2", "World"), "c": Item("q3", "Sports")}
REMEMBERED = {"a": "World", "b": "Sports", "c": "Sports"}


def correct(text: str, item: Item) -> bool:
    return text == item.answer


def test_a_label_is_its_choice_or_the_answer_that_was_remembered() -> None:
    found = labels_right(
        [("a", "Sports"), ("b", "World"), ("c", None)], KNOWN, REMEMBERED.__getitem__, correct
    )
    assert found == {"labels": 3, "labels_right": 2}


def test_labels_of_questions_that_nobody_knows_the_answer_to_do_not_count() -> None:
    found = labels_right([("a", None), ("stranger", "World")], KNOWN, REMEMBERED.__getitem__, correct)
    assert found == {"labels": 1, "labels_right": 1}
