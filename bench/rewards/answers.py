"""The rows of a measurement as arrays.

Owns the layout and Q of given weights. Knows nothing of statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.statistics import Bools, Floats, Ints


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
        for name, share in weights.items():
            applies = ~np.isnan(self.signals[name])
            total[applies] += share * self.signals[name][applies]
            weight[applies] += share
        found: Floats = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
        return np.minimum(found, 1.0)
