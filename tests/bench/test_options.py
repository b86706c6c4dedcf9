"""Options that several benchmarks share."""

import pytest

from bench.options import names, numbers
from cli.failure import USAGE, CommandError


def test_numbers_keep_their_order() -> None:
    assert numbers("3,0, 2", "--seeds") == [3, 0, 2]
    assert numbers("1,10,100", "--sizes", least=1, rising=True) == [1, 10, 100]


@pytest.mark.parametrize("text", ["", "many", "4,4", "-1", "1,,2", "1.5"])
def test_what_are_no_different_numbers_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--seeds") as refused:
        numbers(text, "--seeds")
    assert refused.value.exit_code == USAGE


@pytest.mark.parametrize("text", ["20,10", "0,5"])
def test_numbers_that_have_to_rise_do(text: str) -> None:
    with pytest.raises(CommandError, match="not rising numbers from 1 on"):
        numbers(text, "--sizes", least=1, rising=True)


def test_names_keep_their_order() -> None:
    assert names("low, plain", "--arms", ("plain", "low", "recall")) == ("low", "plain")


@pytest.mark.parametrize(
    ("text", "message"), [("low,fast", "'fast' is none"), ("low,low", "twice"), ("", "''")]
)
def test_a_name_that_is_none_or_stands_twice_is_refused(text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message) as refused:
        names(text, "--arms", ("plain", "low"))
    assert refused.value.exit_code == USAGE
