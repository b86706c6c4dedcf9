"""Which question belongs to which day."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.stream.plan import Plan
from bench.stream.questions import Files
from cli.demonstration.stream import Item
from cli.failure import USAGE, CommandError
from tests.bench.stream.conftest import items_of


def names(items: Sequence[Item]) -> list[str]:
    return [item.question for item in items]


@pytest.mark.parametrize("seed", range(3))
def test_no_question_is_dealt_twice(plan: Plan, seed: int) -> None:
    items = items_of(45)
    held_out, days = replace(plan, nights=3).parts([*items, *items[:20]], seed)
    dealt = names(held_out) + [name for day in days for name in names(day)]
    assert [len(held_out), *map(len, days)] == [4, 12, 12, 12]
    assert len(dealt) == len(set(dealt))


def test_more_nights_leave_what_was_dealt_before(plan: Plan) -> None:
    items = items_of(45)
    held_out, days = replace(plan, nights=1).parts(items, 7)
    longer = replace(plan, nights=3).parts(items, 7)
    assert longer[0] == held_out
    assert longer[1][:1] == days


def test_seeds_deal_differently_and_always_the_same(plan: Plan) -> None:
    items = items_of(30)
    assert plan.parts(items, 1) == plan.parts(items, 1)
    assert plan.parts(items, 1) != plan.parts(items, 2)


def test_too_few_different_questions_are_refused(plan: Plan) -> None:
    with pytest.raises(CommandError, match="16 are needed") as refused:
        plan.parts(items_of(15) * 2, 0)
    assert refused.value.exit_code == USAGE


def write(path: Path, questions: list[str]) -> str:
    rows = [{"question": question, "answer": number} for number, question in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_other_files_are_held_out_whole_and_each_question_once(plan: Plan, tmp_path: Path) -> None:
    data = write(tmp_path / "day.jsonl", names(items_of(20)))
    other = write(tmp_path / "other.jsonl", ["a", "b", "a", "c", "d", "e"])
    sets, _, _ = Files(replace(plan, data=data, also=(other,))).deal(0)
    assert [found.name for found in sets] == ["stream", "other"]
    assert names(sets[1].items) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("second", ["stream.jsonl", "deep/other.jsonl"])
def test_two_files_of_one_name_are_refused(plan: Plan, tmp_path: Path, second: str) -> None:
    (tmp_path / "deep").mkdir()
    data = write(tmp_path / "day.jsonl", names(items_of(20)))
    also = (write(tmp_path / "other.jsonl", ["a"]), write(tmp_path / second, ["b"]))
    with pytest.raises(CommandError, match="is taken"):
        Files(replace(plan, data=data, also=also))


def labelled(count: int) -> list[Item]:
    """Return questions of which every fourth is about sports."""
    return [Item(f"headline {n}", ("Sports", "World", "Business", "World")[n % 4]) for n in range(count)]


def test_skewed_days_have_the_share_asked_for_and_the_same_questions_held_out(plan: Plan) -> None:
    even = replace(plan, nights=2, held_out=8)
    items = labelled(120)
    held_out, days = replace(even, skew="Sports=0.75").parts(items, 3)
    assert held_out == even.parts(items, 3)[0]
    assert [sum(item.answer == "Sports" for item in day) for day in days] == [9, 9]
    dealt = names(held_out) + [name for day in days for name in names(day)]
    assert len(dealt) == len(set(dealt)) == 8 + 24
    assert replace(even, nights=1, skew="Sports=0.75").parts(items, 3)[1] == days[:1]
    assert {item.answer for item in days[0][:9]} != {"Sports"}  # a day does not begin with all of one class


@pytest.mark.parametrize("skew", ["Sports", "Sports=often", "Sports=1.5", "=0.5", "Sports=nan"])
def test_skew_that_is_none_is_refused(plan: Plan, skew: str) -> None:
    with pytest.raises(CommandError, match="not LABEL=SHARE"):
        replace(plan, skew=skew).parts(labelled(120), 0)


@pytest.mark.parametrize(("skew", "lacking"), [("Sports=1", "of Sports"), ("Weather=0.5", "0 questions")])
def test_skew_that_the_file_cannot_give_is_refused(plan: Plan, skew: str, lacking: str) -> None:
    with pytest.raises(CommandError, match=lacking):
        replace(plan, skew=skew).parts(labelled(40), 0)


def rows_of(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_choices_hold_answers_to_the_labels_of_their_file(plan: Plan, tmp_path: Path) -> None:
    own = {"question": "its own?", "answer": "yes", "choices": ["yes", "no"]}
    topics = [{"question": f"q{n}", "answer": ("World", "Sports")[n % 2]} for n in range(20)]
    data = rows_of(tmp_path / "topics.jsonl", [*topics, own])
    sets, days, _ = Files(replace(plan, data=data, choices=True)).deal(0)
    dealt = {item.question: item.choices for item in (*sets[0].items, *days[0])}
    assert {choices for question, choices in dealt.items() if question != "its own?"} == {("World", "Sports")}
    assert dealt.get("its own?", ("yes", "no")) == ("yes", "no")
    free, _, _ = Files(replace(plan, data=data)).deal(0)
    assert {item.choices for item in free[0].items} <= {(), ("yes", "no")}


def test_choices_of_numbers_are_refused(plan: Plan, tmp_path: Path) -> None:
    data = write(tmp_path / "day.jsonl", names(items_of(20)))
    with pytest.raises(CommandError, match="numbers, not labels"):
        Files(replace(plan, data=data, choices=True))
