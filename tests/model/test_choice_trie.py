"""Only whole choices come out of the trie."""

import pytest

from model.choice_trie import ChoiceTrie


def test_every_path_is_a_choice_and_every_choice_a_path() -> None:
    choices = {(1,), (1, 2), (3, 4, 5), (3, 4, 6)}
    trie = ChoiceTrie(choices, end=9)
    found, open_paths = set(), [()]
    while open_paths:
        path = open_paths.pop()
        for token in trie.allowed(path):
            if token == 9:
                found.add(path)
            else:
                open_paths.append((*path, token))
    assert found == choices
    assert trie.allowed((1, 9)) == []


def test_an_answer_may_be_empty_when_that_is_a_choice() -> None:
    assert ChoiceTrie([(), (1,)], end=9).allowed(()) == [1, 9]


def test_no_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="choices"):
        ChoiceTrie([], end=9)
