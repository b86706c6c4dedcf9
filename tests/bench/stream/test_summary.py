"""What rows say, on examples reckoned by hand."""

from typing import Any

import pytest

from bench.stream.runner import START
from bench.stream.summary import costs, days, scores, unlike


def row(arm: str, question: str, correct: bool, *, stage: str = START, **more: Any) -> dict[str, Any]:
    return {
        "seed": 0,
        "stage": stage,
        "set": "stream",
        "arm": arm,
        "question": question,
        "correct": correct,
        "tokens": 4,
        "finished": True,
        "generated": 8,
        "forward": 20,
        "wall_s": 0.5,
        **more,
    }


def test_difference_to_plain_is_paired_by_question() -> None:
    questions = [f"q{n}" for n in range(8)]
    plain = [row("plain", question, n < 4) for n, question in enumerate(questions)]
    # The same questions and one more: accuracies vary by half, their difference hardly.
    low = [row("low", question, n < 5, stage="night-1") for n, question in enumerate(questions)]
    found = {score.arm: score for score in scores([*plain, *low])}
    assert found["plain"].against_plain is None
    assert found["plain"].accuracy.mean == 0.5
    difference = found["low"].against_plain
    assert difference is not None
    assert difference.mean == pytest.approx(1 / 8)
    assert difference.high - difference.low < found["low"].accuracy.high - found["low"].accuracy.low


def test_difference_is_of_the_same_seed_and_file() -> None:
    rows = [row("plain", "q", True), row("plain@other", "q", False, set="other")]
    rows += [row("low", "q", True), row("low@other", "q", True, set="other")]
    found = {score.arm: score.against_plain for score in scores(rows)}
    assert found["plain@other"] is None
    assert found["low"] is not None
    assert found["low"].mean == 0.0
    assert found["low@other"] is not None
    assert found["low@other"].mean == 1.0


def test_without_plain_there_is_no_difference() -> None:
    (score,) = scores([row("low", "q", True), row("low", "r", False)])
    assert score.against_plain is None


def test_seeds_of_one_question_are_one_observation() -> None:
    rows = [row("plain", question, True, seed=seed) for question in "ab" for seed in range(3)]
    rows += [row("plain", "c", False)]
    (score,) = scores(rows)
    assert score.n == 7
    assert score.accuracy.mean == pytest.approx(2 / 3)


def sampled(question: str, *votes: str | None, right: str = "7", forward: int = 60) -> dict[str, Any]:
    """Return a row of a majority whose samples have 10 tokens each."""
    samples = [{"vote": v, "tokens": 10, "finished": v is not None, "correct": v == right} for v in votes]
    generated = 10 * len(votes)
    return row("majority", question, True, samples=samples, generated=generated, forward=forward)


def test_majorities_of_fewer_samples_by_hand() -> None:
    found = {score.arm: score for score in scores([sampled("q", None, "7", "3", "7")])}
    assert list(found) == ["majority", "majority of 1", "majority of 2"]
    one, two = found["majority of 1"], found["majority of 2"]
    assert (one.accuracy.mean, one.finished, one.generated, one.forward) == (2 / 4, 3 / 4, 10, 30)
    # Of (none, 7) the one vote counts, of (3, 7) the first.
    assert (two.accuracy.mean, two.finished, two.generated, two.forward) == (1 / 2, 1, 20, 40)
    assert two.wall_s is None


def test_arms_stand_beside_the_majority_of_the_nearest_compute() -> None:
    questions = [sampled(f"q{n}", "3", "7", "3", "7", "7", "7", "7", "7", forward=100) for n in range(4)]
    cheap = [row("low", f"q{n}", True, stage="night-1", forward=33) for n in range(4)]
    dear = [row("evolution", f"q{n}", n < 1, stage="night-1", forward=2000) for n in range(4)]
    other = [row("low", "of no majority", True)]
    found = {score.arm: score.against_majority for score in scores([*questions, *cheap, *dear])}
    assert found["majority"] is found["majority of 4"] is None
    beside = {arm: against for arm, against in found.items() if against is not None}
    assert {arm: against.arm for arm, against in beside.items()} == {
        "low": "majority of 1",
        "evolution": "majority",
    }
    assert beside["low"].cost == pytest.approx(33 / 30)
    assert beside["evolution"].cost == pytest.approx(2000 / 100)
    assert beside["low"].difference.mean == pytest.approx(1 - 6 / 8)
    assert beside["evolution"].difference.mean == pytest.approx(1 / 4 - 1)
    assert {score.arm: score for score in scores([*questions, *other])}["low"].against_majority is None


def test_nearest_majority_is_that_of_the_questions_that_were_asked() -> None:
    votes = ("3", "7", "3", "7")
    few = [sampled(f"q{n}", *votes, forward=60) for n in range(2)]
    more = [sampled(f"r{n}", *votes, forward=4000) for n in range(9)]
    refined = [row("evolution", f"q{n}", True, forward=38) for n in range(2)]
    (found,) = (score for score in scores([*few, *more, *refined]) if score.arm == "evolution")
    assert found.against_majority is not None
    assert (found.against_majority.arm, found.against_majority.cost) == ("majority of 2", 38 / 40)


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.0876), (20, 0.352, 0.648), (40, 0.9124, 1.0)])
def test_accuracy_has_wilsons_interval(right: int, low: float, high: float) -> None:
    (score,) = scores([row("plain", str(n), n < right) for n in range(40)])
    assert (score.accuracy.low, score.accuracy.high) == pytest.approx((low, high), abs=1e-4)


def test_any_correct_is_the_share_of_questions_that_some_sample_got_right() -> None:
    rows = [row("majority", "a", False, any_correct=True), row("majority", "b", False, any_correct=False)]
    (score,) = scores([*rows, row("majority", "c", True, any_correct=True)])
    assert score.any_correct == pytest.approx(2 / 3)
    (other,) = scores([row("plain", "a", True)])
    assert other.any_correct is None


def test_days_tell_what_was_remembered_and_how_well_rewards_knew() -> None:
    kept = [(0.9, True), (0.8, False), (0.4, False), (0.7, True)]
    rows: list[dict[str, Any]] = [
        {
            "seed": 0,
            "stage": "day-1",
            "arm": "served",
            "question": str(number),
            "remembered": {"reward": reward, "correct": right, "tokens": 10 * number},
        }
        for number, (reward, right) in enumerate(kept)
    ]
    rows.append({"seed": 0, "stage": "day-1", "arm": "served", "question": "forgotten"})
    (day,) = days(rows)
    assert (day.asked, day.remembered, day.right, day.tokens) == (5, 4, 0.5, 15.0)
    assert day.auc == 3 / 4


def test_unlike_prompts_are_counted_by_stage() -> None:
    rows = [{"arm": "unlike", "stage": "night-1", "correct": same} for same in (True, True, False)]
    assert unlike(rows) == {"night-1": (2, 3)}


def test_a_night_is_paid_back_by_what_the_majority_would_have_cost_more() -> None:
    rows = [row("plain", "q", False), row("majority", "q", True, forward=120)]
    for seed in (0, 1):
        for night, accurate in (("1", True), ("2", False)):
            lived = {"seed": seed, "arm": "served", "question": "d", "spent": 150 + 100 * seed}
            rows.append(lived | {"stage": f"day-{night}"})
            rows.append(
                {"seed": seed, "stage": f"night-{night}", "arm": "night", "question": "", "spent": 600}
            )
            rows.append(row("low", "q", accurate, stage=f"night-{night}", seed=seed))
    first, second = costs(rows, scores(rows))
    assert (first.stage, first.forward, first.plain_answers, first.pays_after) == ("night-1", 800, 40, 8)
    assert (second.forward, second.pays_after) == (1600, None), "less accurate than the majority"


def test_a_night_that_computed_nothing_costs_nothing_and_seeds_count_where_they_have_come() -> None:
    def spent(seed: int, stage: str, tokens: int) -> dict[str, Any]:
        arm = "night" if stage.startswith("night") else "served"
        return {"seed": seed, "stage": stage, "arm": arm, "question": "", "spent": tokens}

    rows = [
        spent(0, "day-1", 1000),
        spent(0, "night-1", 0),
        spent(0, "day-2", 1000),
        spent(0, "night-2", 500),
    ]
    assert [cost.forward for cost in costs(rows, scores(rows))] == [1000, 2500]
    rows += [spent(1, "day-1", 3000), spent(1, "night-1", 200), spent(1, "day-2", 7000)]
    assert [cost.forward for cost in costs(rows, scores(rows))] == [(1000 + 3200) / 2, 2500]


def test_what_nobody_counted_has_no_cost() -> None:
    rows = [{"seed": 0, "stage": "night-1", "arm": "night", "question": "", "spent": None}]
    assert costs(rows, scores(rows)) == []
