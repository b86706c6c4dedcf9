"""What a measurement found, as one document.

Owns which statistics are reported. Knows nothing of tables or pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bench.rewards import picks
from bench.rewards.answers import Answers
from bench.statistics import Floats, Interval, interval, pooled, share, within

CONFIDENT = 5
"""Confident but wrong answers that are shown."""


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
                ("greedy", picks.greedy),
                ("random sample", picks.any_sample),
                ("majority", picks.majority),
                ("any right", picks.any_right),
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
    return {
        "applies": int((~np.isnan(values)).sum()),
        **_auc(answers, values),
        "pick": _pick(answers, picks.best(answers, values)),
    }


def _auc(answers: Answers, values: Floats) -> dict[str, Any]:
    inside, questions = within(values, answers.right, answers.question)
    return {
        "auc": _interval(pooled(values, answers.right, answers.question)),
        "auc_within": _interval(inside),
        "auc_within_questions": questions,
    }


def _pick(answers: Answers, right: Floats) -> dict[str, Any]:
    """Return how often a way of choosing is right, and its paired difference to greedy."""
    return {
        "right": _interval(interval(right)),
        "against_greedy": _interval(interval(right - picks.greedy(answers))),
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
