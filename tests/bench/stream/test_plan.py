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
