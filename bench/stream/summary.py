"""What the rows of a run say.

Owns the statistics: accuracy and compute by arm and stage with intervals over questions, the difference
to plain, and how well rewards tell right from wrong. Knows nothing of tables or plots.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.stream.runner import START
from worker.bootstrap import Interval, grouped_means, interval

Row = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """One arm at one stage, over all seeds; each question is one observation, its seeds averaged."""

    arm: str
    stage: str
    n: int
    """Answers."""
    accuracy: Interval
    against_plain: Interval | None
    """Paired difference on the same questions; None for plain itself."""
    tokens: float
    """Mean length of the answer."""
    finished: float
    """Share of answers that ended within the budget."""
    generated: float
    """Mean tokens generated per question, rollouts included."""
    forward: float
    """Mean forward-equivalent tokens per question."""
    wall_s: float
    any_correct: float | None
    """Share of questions that at least one of its samples got right: an oracle, no arm."""


def scores(rows: Sequence[Row]) -> list[Score]:
    """Return every arm at every stage, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if "tokens" in row:
            groups[row["arm"], row["stage"]].append(row)
    plain = {
        (row["set"], row["seed"], row["question"]): float(row["correct"])
        for row in rows
        if row["arm"].split("@")[0] == "plain" and row["stage"] == START
    }
    return [_score(arm, stage, group, plain) for (arm, stage), group in groups.items()]


def auc(rewards: Sequence[float], right: Sequence[bool]) -> float | None:
    """Return the chance that a right answer has a higher reward than a wrong one; None without both."""
    good = [reward for reward, correct in zip(rewards, right, strict=True) if correct]
    bad = [reward for reward, correct in zip(rewards, right, strict=True) if not correct]
    if not good or not bad:
        return None
    above = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return float(above / (len(good) * len(bad)))


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


def unlike(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Return by stage how many answers to unlike prompts stayed the same, of how many."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        if row["arm"] == "unlike":
            same, of = found.get(row["stage"], (0, 0))
            found[row["stage"]] = same + bool(row["correct"]), of + 1
    return found


def _score(arm: str, stage: str, rows: list[Row], plain: dict[tuple[str, int, str], float]) -> Score:
    numbers: dict[tuple[str, str], int] = {}
    questions = [numbers.setdefault((row["set"], row["question"]), len(numbers)) for row in rows]
    correct = np.array([float(row["correct"]) for row in rows])
    base = [plain.get((row["set"], row["seed"], row["question"])) for row in rows]
    against = None
    if arm.split("@")[0] != "plain" and all(value is not None for value in base):
        difference = correct - np.array(base, dtype=float)
        against = interval(grouped_means(difference, questions))
    oracle = [row["any_correct"] for row in rows if "any_correct" in row]

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    return Score(
        arm=arm,
        stage=stage,
        n=len(rows),
        accuracy=interval(grouped_means(correct, questions)),
        against_plain=against,
        tokens=mean("tokens"),
        finished=mean("finished"),
        generated=mean("generated"),
        forward=mean("forward"),
        wall_s=mean("wall_s"),
        any_correct=float(np.mean(oracle)) if oracle else None,
    )
