"""What the rows of a run say.

Owns the statistics: accuracy and compute by arm and stage with intervals over questions, differences to
plain and to the majority of the nearest compute, and how well rewards tell right from wrong. Knows nothing
of tables or plots.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.asking import elected
from bench.statistics import Interval, auc, grouped_means, interval, wilson
from bench.stream.runner import START

Row = dict[str, Any]
Answered = tuple[str, int, str]
"""Set, seed and question."""
MAJORITY = "majority"


@dataclass(frozen=True)
class Against:
    """A paired difference to another arm on the same questions."""

    arm: str
    difference: Interval
    cost: float
    """How many times the other arm's forward-equivalent tokens this one takes on these questions."""


@dataclass(frozen=True)
class Score:
    """One arm at one stage, over all seeds; each question is one observation, its seeds averaged."""

    arm: str
    stage: str
    n: int
    """Answers."""
    accuracy: Interval
    """With Wilson's interval of a share, which also says something where all answers are wrong."""
    against_plain: Interval | None
    """Paired difference on the same questions; None for plain itself."""
    against_majority: Against | None
    """The same to the majority whose forward-equivalent tokens are nearest; None for majorities."""
    tokens: float
    """Mean length of the answer."""
    finished: float
    """Share of answers that ended within the budget."""
    generated: float
    """Mean tokens generated per question, rollouts included."""
    forward: float
    """Mean forward-equivalent tokens per question."""
    wall_s: float | None
    """Seconds per question; None where it was not timed by itself."""
    any_correct: float | None
    """Share of questions that at least one of its samples got right: an oracle, no arm."""


def scores(rows: Sequence[Row]) -> list[Score]:
    """Return every arm at every stage, in the order of the rows; then the majorities of fewer samples."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in [*rows, *_smaller_majorities(rows)]:
        if "tokens" in row:
            groups[row["arm"], row["stage"]].append(row)
    return [_score(arm, stage, group, groups) for (arm, stage), group in groups.items()]


def answers_of(rows: Sequence[Row], arm: str, stage: str) -> list[Row]:
    """Return what an arm answered at a stage."""
    return [row for row in rows if (row["arm"], row["stage"]) == (arm, stage) and "tokens" in row]


def paired(rows: Sequence[Row], others: Sequence[Row]) -> Interval | None:
    """Return how much more often the first are right than others to the same questions; None without any.

    Over questions, the seeds of each averaged.
    """
    known = {_answered(row): float(row["correct"]) for row in others}
    both = [row for row in rows if _answered(row) in known]
    if not both:
        return None
    differences = np.array([float(row["correct"]) - known[_answered(row)] for row in both])
    return interval(grouped_means(differences, _questions(both)))


def _questions(rows: Sequence[Row]) -> list[int]:
    """Return the number of the question of each row."""
    numbers: dict[tuple[str, str], int] = {}
    return [numbers.setdefault((row["set"], row["question"]), len(numbers)) for row in rows]


def _smaller_majorities(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield what majorities of 1, 2, 4 … of the same samples would have answered, and at what cost.

    The samples are parted into groups of that size, and a row is the mean over its groups; of seven samples,
    majorities of two leave one out.
    """
    for row in rows:
        base, at, name = row["arm"].partition("@")
        if base != MAJORITY or "samples" not in row:
            continue
        samples: list[Row] = row["samples"]
        size = 1
        while size < len(samples):
            parts = [samples[n : n + size] for n in range(0, len(samples) - size + 1, size)]
            chosen = [part[elected([one["vote"] for one in part]) or 0] for part in parts]
            generated = float(np.mean([sum(one["tokens"] for one in part) for part in parts]))
            yield {
                **{key: row[key] for key in ("seed", "stage", "set", "question")},
                "arm": f"{MAJORITY} of {size}{at}{name}",
                **{key: _mean(chosen, key) for key in ("correct", "tokens", "finished")},
                "generated": generated,
                "forward": row["forward"] - row["generated"] + generated,
                "wall_s": None,
            }
            size *= 2


@dataclass(frozen=True)
class Day:
    """What the days of one number left to remember, over all seeds."""

    stage: str
    asked: int
    remembered: int
    right: float | None
    """Share of the remembered answers that is right."""
    tokens: float | None
    auc: float | None
    """Of the reward among remembered answers."""


def days(rows: Sequence[Row]) -> list[Day]:
    """Return each day, in order."""
    asked = Counter(row["stage"] for row in rows if row["arm"] == "served")
    found = []
    for stage, kept in remembered(rows).items():
        found.append(
            Day(
                stage,
                asked[stage],
                len(kept),
                float(np.mean([one["correct"] for one in kept])) if kept else None,
                float(np.mean([one["tokens"] for one in kept])) if kept else None,
                auc([one["reward"] for one in kept], [one["correct"] for one in kept]),
            )
        )
    return found


def remembered(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return by day what was worth remembering."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["arm"] == "served":
            found[row["stage"]] += [row["remembered"]] if "remembered" in row else []
    return found


@dataclass(frozen=True)
class Cost:
    """What days and nights have computed until the end of one, exploring included; a mean over its seeds."""

    stage: str
    forward: float
    """Forward-equivalent tokens."""
    plain_answers: float | None
    """The same in plain answers to the stream's questions; None where plain was not asked."""
    pays_after: float | None
    """Answers at `low` after which it is less than what the majority would have cost more; None where the
    majority was not asked, or `low` is less accurate or costs more."""


def costs(rows: Sequence[Row], found: Sequence[Score]) -> list[Cost]:
    """Return the cost of each night, given all scores; nothing of a run that did not count it."""
    arms = {(score.arm, score.stage): score for score in found}
    plain, majority = arms.get(("plain", START)), arms.get((MAJORITY, START))
    so_far: dict[int, float] = defaultdict(float)
    until: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["arm"] in ("served", "night"):
            spent = row.get("spent")
            so_far[row["seed"]] += math.nan if spent is None else spent
        if row["arm"] == "night":
            until[row["stage"]].append(so_far[row["seed"]])
    costs = []
    for stage, totals in until.items():
        total = float(np.mean(totals))
        low = arms.get(("low", stage))
        pays_after = None
        if (
            low
            and majority
            and low.accuracy.mean >= majority.accuracy.mean
            and low.forward < majority.forward
        ):
            pays_after = total / (majority.forward - low.forward)
        costs.append(Cost(stage, total, total / plain.forward if plain else None, pays_after))
    return [cost for cost in costs if math.isfinite(cost.forward)]


def unlike(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Return by stage how many answers to unlike prompts stayed the same, of how many."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        if row["arm"] == "unlike":
            same, of = found.get(row["stage"], (0, 0))
            found[row["stage"]] = same + bool(row["correct"]), of + 1
    return found


def _score(arm: str, stage: str, rows: list[Row], groups: Mapping[tuple[str, str], list[Row]]) -> Score:
    base, at, name = arm.partition("@")
    correct = np.array([float(row["correct"]) for row in rows])
    oracle = [row["any_correct"] for row in rows if "any_correct" in row]
    timed = [row["wall_s"] for row in rows if row["wall_s"] is not None]

    beside = None
    if not base.startswith(MAJORITY):
        mine = {_answered(row) for row in rows}
        offered = [
            (other, [row for row in found if _answered(row) in mine])
            for (other, when), found in groups.items()
            if when == START and other.startswith(MAJORITY) and other.partition("@")[1:] == (at, name)
        ]
        costs = [
            (_mean(rows, "forward") / _mean(same, "forward"), other, same) for other, same in offered if same
        ]
        cost, other, same = min(costs, key=lambda found: abs(math.log(found[0])), default=(1.0, "", []))
        difference = paired(rows, same)
        beside = None if difference is None else Against(other, difference, cost)
    return Score(
        arm=arm,
        stage=stage,
        n=len(rows),
        accuracy=wilson(grouped_means(correct, _questions(rows))),
        against_plain=None if base == "plain" else paired(rows, groups.get((f"plain{at}{name}", START), [])),
        against_majority=beside,
        tokens=_mean(rows, "tokens"),
        finished=_mean(rows, "finished"),
        generated=_mean(rows, "generated"),
        forward=_mean(rows, "forward"),
        wall_s=float(np.mean(timed)) if timed else None,
        any_correct=float(np.mean(oracle)) if oracle else None,
    )


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _answered(row: Row) -> Answered:
    return row["set"], row["seed"], row["question"]
