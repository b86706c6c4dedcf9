"""What a measurement found, as one document.

Owns the rows as arrays with Q of given weights, the ways to choose one answer per question out of its
samples, and which statistics are reported. Where a choice is tied, the mean of the tied answers counts, so
that no way gains by the order of the samples. Knows nothing of tables or pictures.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.statistics import Bools, Floats, Interval, Ints, interval, pooled, share, within

CONFIDENT = 5
"""Confident but wrong answers that are shown."""


@dataclass(frozen=True, eq=False)
class Answers:
    """N answers to questions that are numbered from 0; of each question the greedy one and its samples."""

    rows: Sequence[Mapping[str, Any]]
    """One per question."""
    signals: Mapping[str, Floats]
    """(N,) by name; NaN where a signal does not apply."""
    right: Bools
    question: Ints
    """(N,) number of the question."""
    greedy: Bools
    texts: Sequence[str]
    """N texts."""
    votes: Sequence[str | None]
    """N final answers; None for answers that have no vote in a majority."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> "Answers":
        """Return the answers of these rows with the signals of these names."""
        flat = [(number, at, one) for number, row in enumerate(rows) for at, one in enumerate(row["answers"])]
        return cls(
            rows=rows,
            signals={
                name: np.array([one["signals"].get(name, np.nan) for _, _, one in flat], dtype=np.float64)
                for name in names
            },
            right=np.array([one["correct"] for _, _, one in flat], dtype=np.bool_),
            question=np.array([number for number, _, _ in flat], dtype=np.int64),
            greedy=np.array([at == 0 for _, at, _ in flat], dtype=np.bool_),
            texts=[one["text"] for _, _, one in flat],
            votes=[one["vote"] for _, _, one in flat],
        )

    def quality(self, weights: Mapping[str, float]) -> Floats:
        """Return Q as in the server, (N,): the weighted mean of the signals that apply, 0 without any."""
        total, weight = np.zeros(len(self.texts)), np.zeros(len(self.texts))
        for name, part in weights.items():
            applies = ~np.isnan(self.signals[name])
            total[applies] += part * self.signals[name][applies]
            weight[applies] += part
        found: Floats = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
        return np.minimum(found, 1.0)


def greedy(answers: Answers) -> Floats:
    """Return by question whether the greedy answer is right, (Q,)."""
    return answers.right[answers.greedy].astype(np.float64)


def any_sample(answers: Answers) -> Floats:
    """Return the share of right samples, (Q,): a sample taken at random."""
    return np.array([answers.right[mine].mean() for mine in _samples(answers)])


def majority(answers: Answers) -> Floats:
    """Return the share of right samples among those with the most frequent answer, (Q,)."""
    found = []
    for mine in _samples(answers):
        votes = [answers.votes[index] for index in mine]
        counted = Counter(vote for vote in votes if vote is not None)
        most = max(counted.values(), default=0)
        chosen = [index for index, vote in zip(mine, votes, strict=True) if vote and counted[vote] == most]
        found.append(answers.right[chosen or mine].mean())
    return np.array(found)


def any_right(answers: Answers) -> Floats:
    """Return whether any sample is right, (Q,): an oracle, what no way of choosing can beat."""
    return np.array([float(answers.right[mine].any()) for mine in _samples(answers)])


def best(answers: Answers, values: Floats) -> Floats:
    """Return the share of right samples among those of the highest value, (Q,).

    Where no sample has a value, nothing is chosen: a sample at random.
    """
    found = []
    for mine in _samples(answers):
        valued = mine[~np.isnan(values[mine])]
        chosen = valued[values[valued] == values[valued].max()] if len(valued) else mine
        found.append(answers.right[chosen].mean())
    return np.array(found)


def _samples(answers: Answers) -> Iterator[Ints]:
    """Yield the numbers of each question's samples."""
    for number in range(len(answers.rows)):
        yield np.flatnonzero((answers.question == number) & ~answers.greedy)


def summarise(
    rows: Sequence[Mapping[str, Any]], weights: Mapping[str, float], names: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Return all results.

    Args:
        rows: One per question, at least one.
        weights: Of Q, by signal; each of `names`.
        names: The signals.
        threshold: Least Q of what the server remembers.
    """
    answers = Answers.of(rows, names)
    quality = answers.quality(weights)
    return {
        "questions": len(rows),
        "answers": len(answers.texts),
        "right": _interval(share(answers.right, np.ones_like(answers.right), answers.question)),
        "signals": {
            name: _signal(answers, values) | _cost(rows, name) for name, values in answers.signals.items()
        },
        "quality": {"weights": dict(weights), **_signal(answers, quality)},
        "picks": {
            name: _pick(answers, ways(answers))
            for name, ways in (
                ("greedy", greedy),
                ("random sample", any_sample),
                ("majority", majority),
                ("any right", any_right),
            )
        },
        "threshold": {
            "at": threshold,
            "answers": int((quality >= threshold).sum()),
            "right": _interval(share(answers.right, quality >= threshold, answers.question)),
        },
        "confident_but_wrong": _confident(answers, quality),
    }


def _signal(answers: Answers, values: Floats) -> dict[str, Any]:
    inside, questions = within(values, answers.right, answers.question)
    return {
        "applies": int((~np.isnan(values)).sum()),
        "auc": _interval(pooled(values, answers.right, answers.question)),
        "auc_within": _interval(inside),
        "auc_within_questions": questions,
        "pick": _pick(answers, best(answers, values)),
    }


def _pick(answers: Answers, right: Floats) -> dict[str, Any]:
    """Return how often a way of choosing is right, and its paired difference to greedy."""
    return {
        "right": _interval(interval(right)),
        "against_greedy": _interval(interval(right - greedy(answers))),
    }


def _cost(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    scored = sum(len(row["answers"]) for row in rows)
    return {
        f"{kind}_per_answer": sum(row["spent"][name][kind] for row in rows) / scored
        for kind in ("generated", "forward")
    }


def _confident(answers: Answers, quality: Floats) -> list[dict[str, Any]]:
    """Return the wrong answers of the highest Q, one per question."""
    found: dict[int, dict[str, Any]] = {}
    for index in np.argsort(-quality, kind="stable"):
        number = int(answers.question[index])
        if answers.right[index] or number in found:
            continue
        row = answers.rows[number]
        found[number] = {
            "question": row["question"],
            "answer": answers.texts[index],
            "expected": row["expected"],
            "quality": round(float(quality[index]), 4),
            "signals": {
                name: round(float(values[index]), 4)
                for name, values in answers.signals.items()
                if not np.isnan(values[index])
            },
        }
        if len(found) == CONFIDENT:
            break
    return list(found.values())


def _interval(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)
