"""Scoring, reading and counting of the demo."""

import json
from pathlib import Path

import pytest

from cli.chat import Answer
from cli.demonstration.day import Reply, Tally
from cli.demonstration.report import accuracy, comparison, harm
from cli.demonstration.score import Scorer, paired_interval
from cli.demonstration.stream import EXAMPLES, Item, read_items, read_prompts, split
from cli.failure import CommandError

TOPICS = Scorer(["World", "Sports", "Business", "Technology"])
NUMBERS = Scorer([9.0, 15.0])


@pytest.mark.parametrize(
    "reply", ["Business", "business.", " The topic is **Business**!\n", "Business, business"]
)
def test_right_label_counts_however_it_is_put(reply: str) -> None:
    assert TOPICS.correct(reply, "Business")


@pytest.mark.parametrize(
    "reply", ["", "Sports", "Businesses", "World, Sports, Business, Technology", "Economy"]
)
def test_wrong_missing_or_several_labels_do_not_count(reply: str) -> None:
    assert not TOPICS.correct(reply, "Business")


def test_label_inside_a_longer_label_is_not_that_label() -> None:
    scorer = Scorer(["York", "New York"])
    assert scorer.correct("New York", "New York")
    assert not scorer.correct("New York", "York")


@pytest.mark.parametrize("reply", ["9", "9.", "7 + 2 = 9", "There are 9.0 apples", "$9"])
def test_last_number_is_the_answer(reply: str) -> None:
    assert NUMBERS.correct(reply, 9.0)


@pytest.mark.parametrize("reply", ["", "nine", "9 - 2 = 7", "19", "-9"])
def test_other_numbers_do_not_count(reply: str) -> None:
    assert not NUMBERS.correct(reply, 9.0)


def test_thousands_may_be_grouped_and_answers_may_be_text() -> None:
    assert NUMBERS.correct("It costs 1,250 dollars", "1250")


def test_no_question_is_on_both_sides_of_the_split() -> None:
    items = [Item(f"q{n % 30}", "World") for n in range(60)]
    first, second, left = split(items, 20, 10, seed=3)
    assert len({item.question for item in first} | {item.question for item in second}) == 30
    assert split(items, 20, 10, seed=3) == (first, second, left)


def test_split_says_how_many_questions_are_missing() -> None:
    with pytest.raises(CommandError, match="3 different questions") as refused:
        split([Item(f"q{n}", 1) for n in range(3)], 3, 2, seed=0)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"answer": "World"}',
        '{"question": "q"}',
        '{"question": "q", "answer": true}',
        '{"question": "q", "answer": "a", "choices": "ab"}',
    ],
)
def test_line_that_cannot_be_used_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "stream.jsonl"
    path.write_text(f'{{"question": "q", "answer": "a"}}\n\n{line}\n')
    with pytest.raises(CommandError, match="line 3") as refused:
        read_items(path)
    assert refused.value.exit_code == 2


def test_separators_inside_a_question_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "stream.jsonl"
    questions = ["one\u2028two", "three\u0085four", "five"]
    lines = [json.dumps({"question": text, "answer": 1}, ensure_ascii=False) for text in questions]
    path.write_text("\r\n".join([*lines, ""]), encoding="utf-8", newline="")
    assert [item.question for item in read_items(path)] == questions


def test_example_prompts_are_unlike_the_topics() -> None:
    prompts = read_prompts(EXAMPLES / "unrelated.jsonl")
    assert len(set(prompts)) == 24
    assert not any("headline" in prompt.lower() for prompt in prompts)


def reply(text: str, **headers: str) -> Reply:
    answer = Answer(text, headers, "stop", 40, 2, 0.1, 0.2)
    return Reply("q", answer, {"remembered": "stored", "episodes": [{"id": "e", "similarity": 0.9}]})


def test_rewards_are_compared_only_where_both_were_measured() -> None:
    both = reply("a", mode="refined", **{"reward-before": "0.25", "reward-after": "0.75"})
    tally = Tally([both, reply("b", mode="recall", **{"reward-before": "0.9"}), reply("c", mode="plain")])
    assert tally.rewards() == (0.25, 0.75)
    assert tally.summary()["by_mode"] == {"refined": 1, "recall": 1, "plain": 1}
    assert tally.line() == "recalled 3, searched 1, stored 3, reward 0.250 → 0.750"


def test_reasons_are_counted_together_whatever_the_reward() -> None:
    replies = [reply("a") for _ in range(3)]
    for kept, reward in zip(replies, ("0.2", "0.41"), strict=False):
        kept.trace.update(remembered="no", why_not_remembered=f"its reward {reward} is below 0.5")
    counted = Tally(replies).summary()["remembered"]
    assert counted == {"no: its reward was below 0.5": 2, "stored": 1}


def test_empty_day_has_no_rewards() -> None:
    assert Tally().rewards() == (None, None)


def test_day_tells_what_was_remembered_right_and_what_was_answered_most() -> None:
    items = [Item("q", label) for label in ("World", "Sports", "Business")]
    tally = Tally([reply("World"), reply("World"), reply("Business")])
    tally.replies[2].trace["remembered"] = "no"
    found = accuracy(tally, items, TOPICS)
    assert (found["right"], found["stored"], found["stored_right"]) == (2, 2, 1)
    assert found["answers"] == {"World": 2, "Business": 1}


def test_comparison_counts_both_directions() -> None:
    items = [Item("q", label) for label in ("World", "Sports", "Business", "Business")]
    plain = Tally([reply("World"), reply("Sports"), reply("none"), reply("none")])
    steered = Tally([reply("World"), reply("World"), reply("Business"), reply("Business")])
    found = comparison(plain, steered, items, TOPICS)
    assert found["difference"] == 0.25
    assert (found["newly_right"], found["newly_wrong"]) == (2, 1)
    assert found["low"] < 0 < found["high"], "four questions decide nothing"


def test_interval_of_equal_differences_is_a_point() -> None:
    assert paired_interval([0.0, 0.0, 0.0]) == (0.0, 0.0)
    assert paired_interval([1.0]) == (1.0, 1.0)


def test_changed_answers_to_unlike_prompts_are_kept_for_the_report() -> None:
    found = harm(Tally([reply("a"), reply("b")]), Tally([reply("a"), reply("B", mode="prior")]))
    assert (found["identical"], found["prompts"]) == (1, 2)
    assert json.loads(json.dumps(found["changed"]))[0]["mode"] == "prior"
