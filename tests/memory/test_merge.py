"""One episode per prompt: what somebody said of an answer stands above all that was found."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from memory.episode import Episode
from memory.merge import merged

Make = Callable[..., Episode]

START = datetime(2026, 11, 1, tzinfo=UTC)
NAME = "11111111-1111-5111-8111-111111111111"
GOOD, BAD = 0.75, 0.25


@pytest.fixture
def found(make_episode: Make) -> Make:
    """Episodes of one prompt as searches find them, one an hour."""

    def make(hour: int, answer: str, **fields: object) -> Episode:
        created = START + timedelta(hours=hour)
        return make_episode(id=NAME, answer_text=answer, created_at=created, **fields)

    return make


def told(one: Episode, value: float, answer: str, hours: int = 1) -> Episode:
    """Return what somebody says of an answer to the episode's prompt, so much later."""
    return replace(
        one,
        latent=np.zeros_like(one.latent),
        latent_earned=False,
        reward=value,
        signals={"feedback": value},
        answer_text=answer,
        answer_token_ids=tuple(answer.encode()),
        created_at=one.created_at + timedelta(hours=hours),
        seen_at=None,
    )


def test_a_word_about_the_answer_that_is_there_raises_lowers_and_retracts_it(found: Make) -> None:
    before = found(0, "4")
    good = merged(before, told(before, GOOD, " 4\n"))
    assert (good.answer_text, good.answer_token_ids) == ("4", before.answer_token_ids)
    assert (good.reward, good.signals) == (GOOD, before.signals | {"feedback": GOOD})
    assert good.latent_earned
    assert good.created_at > before.created_at, "a night has something new to learn"
    assert (good.latent == before.latent).all()
    bad = merged(good, told(before, BAD, "4"))
    assert (bad.reward, bad.retracted, bad.latent_earned) == (BAD, True, False)
    again = merged(bad, told(before, GOOD, "4"))
    assert (again.reward, again.retracted) == (GOOD, False)
    assert good.seen == bad.seen == again.seen == before.seen
    assert again.seen_last == before.seen_last


def test_a_better_answer_that_somebody_gave_takes_the_place_of_what_was_found(found: Make) -> None:
    before = found(0, "5", choice_log_probabilities=(-1.0,), choices=("5",))
    after = merged(before, told(before, GOOD, "4"))
    assert (after.answer_text, after.signals) == ("4", {"feedback": GOOD})
    assert not after.latent_earned, "the latent has led to another answer"
    assert (after.latent == before.latent).all()
    assert after.choice_log_probabilities == (-1.0,)
    assert (after.seen, after.seen_last) == (before.seen, before.seen_last)
    later = merged(after, told(before, 1.0, "four", hours=2))
    assert (later.answer_text, later.reward) == ("four", 1.0)


def test_choices_stay_where_a_request_of_the_same_grammar_does_not_name_them(found: Make) -> None:
    held = found(0, "5", choices=("4", "5"), choice_log_probabilities=(-1.0, -0.5))
    free = found(1, "4", reward=1.0, signals=dict.fromkeys("abc", 1.0))
    for after in (merged(held, free), merged(free, held), merged(held, told(held, GOOD, "4"))):
        assert after.choices == held.choices
        assert after.choice_log_probabilities == held.choice_log_probabilities
    good = merged(free, told(free, GOOD, "4"))
    assert merged(good, held).choices == held.choices


def test_a_bad_word_is_about_its_own_answer_alone(found: Make) -> None:
    before = found(0, "4")
    assert merged(before, told(before, BAD, "5")) is before
    good = merged(before, told(before, GOOD, "4"))
    assert merged(good, told(before, BAD, "5")) is good
    bad = merged(before, told(before, BAD, "4"))
    other = merged(bad, told(before, 0.0, "5"))
    assert (other.answer_text, other.retracted) == ("5", True)


def test_what_somebody_called_right_is_not_replaced_by_what_is_found_later(found: Make) -> None:
    good = merged(found(0, "4"), told(found(0, "4"), GOOD, "4"))
    for reward in (0.1, 1.0):
        signals = dict.fromkeys("abcd", reward)
        other = merged(good, found(5, "5", reward=reward, signals=signals))
        assert (other.answer_text, other.reward, other.signals) == ("4", GOOD, good.signals)
        assert (other.latent == good.latent).all()
        assert other.seen == good.seen + 1
    same = found(5, "4")
    after = merged(good, same)
    assert (after.reward, after.signals) == (GOOD, good.signals)
    assert (after.latent == same.latent).all(), "it started from what is served now"


def test_what_somebody_called_wrong_stays_so_until_another_answer_is_found(found: Make) -> None:
    bad = merged(found(0, "5"), told(found(0, "5"), BAD, "5"))
    same = merged(bad, found(5, "5", reward=1.0))
    assert (same.retracted, same.latent_earned, same.seen) == (True, False, bad.seen + 1)
    other = found(6, "4", reward=0.6)
    after = merged(same, other)
    assert (after.answer_text, after.reward, after.retracted) == ("4", 0.6, False)
    assert after.latent_earned
    assert after.seen == same.seen + 1
