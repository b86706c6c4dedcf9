"""The classification examples are what a benchmark may rest on: balanced, all different, one form."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from cli.demonstration.stream import EXAMPLES, Item, read_items, read_prompts

SETS = {"topics": 240, "sentiment": 270, "support": 300}
ALIKE = 0.5
"""Shared words of two texts, as a share of all their words, from which one repeats the other."""

pytestmark = pytest.mark.parametrize("name", SETS)


def items_of(name: str) -> list[Item]:
    return read_items(EXAMPLES / f"{name}.jsonl")


def parts(item: Item) -> tuple[str, str]:
    """Return what is asked, and the text that it is asked of."""
    instruction, text = item.question.split("\n\n")
    kind, colon, text = text.partition(": ")
    assert colon
    return f"{instruction} {kind}", text


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def test_every_item_asks_the_same_and_names_the_choices(name: str) -> None:
    items = items_of(name)
    assert len(items) == SETS[name]
    (asked,) = {parts(item)[0] for item in items}
    (choices,) = {item.choices for item in items}
    places = [asked.find(choice) for choice in choices]
    assert -1 not in places
    assert places == sorted(places)


def test_each_choice_is_right_equally_often(name: str) -> None:
    items = items_of(name)
    counts = Counter(item.answer for item in items)
    assert set(counts) == set(items[0].choices)
    assert len(set(counts.values())) == 1


def test_no_text_repeats_another_in_its_words(name: str) -> None:
    texts = [parts(item)[1] for item in items_of(name)]
    assert not [
        (one, other)
        for one, other in combinations(texts, 2)
        if len(words(one) & words(other)) >= ALIKE * len(words(one) | words(other))
    ]


def test_every_quarter_of_a_file_has_every_choice(name: str) -> None:
    answers = [item.answer for item in items_of(name)]
    quarter = len(answers) // 4
    for start in range(0, quarter * 4, quarter):
        assert set(answers[start : start + quarter]) == set(answers)


def test_few_texts_name_a_choice(name: str) -> None:
    texts = [(parts(item)[1], str(item.answer)) for item in items_of(name)]
    naming = [text for text, answer in texts if answer.casefold() in text.casefold()]
    assert len(naming) <= len(texts) / 20


def test_texts_differ_in_length(name: str) -> None:
    lengths = [len(parts(item)[1].split()) for item in items_of(name)]
    assert max(lengths) >= 2 * min(lengths)


def test_no_prompt_stands_in_another_file_too(name: str) -> None:
    others: set[str] = set()
    for path in sorted(Path(EXAMPLES).glob("*.jsonl")):
        if path.stem != name:
            others.update(read_prompts(path))
    assert not others & set(read_prompts(EXAMPLES / f"{name}.jsonl"))
