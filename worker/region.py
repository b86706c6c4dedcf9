"""Where a candidate may speak.

Owns how much of the hold-out the region of competence must hold. The region itself, centroids and a
least cosine, is `memory/prior.py`'s.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from memory.episode import Episode
from memory.prior import Competence
from worker.neighbourhood import stack_keys

LEFT_OUT = 0.05
"""Share of the hold-out that may lie outside, rounded down: of few episodes none."""

_ROUNDING = 1e-5
"""The same cosine computed one by one and as a matrix differs in the last digits."""


def region(train: Sequence[Episode], holdout: Sequence[Episode], seed: int) -> Competence:
    """Return the region around the training keys that holds (1 − `LEFT_OUT`) of the hold-out's.

    Never wider than the least cosine of `Competence.fit`, so a scattered hold-out can stay outside.
    """
    outside = math.floor(LEFT_OUT * len(holdout))
    fitted = Competence.fit(
        stack_keys(train),
        stack_keys(holdout),
        quantile=outside / max(len(holdout) - 1, 1),  # exactly the (outside + 1)-th smallest cosine
        seed=seed,
    )
    return replace(fitted, threshold=fitted.threshold - _ROUNDING)
