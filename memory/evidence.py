"""Whether a row of a prior deserves to serve: a test that may be looked at any time.

Owns the one rule by which evidence decides (docs/evidence.md). Knows nothing of how outcomes come about, of
priors or of where outcomes are kept.

The test is a mixture of bets against "the row does no good" (Waudby-Smith and Ramdas, arXiv 2010.09686): a
stake of 1 that bets a fixed share λ on each next difference x is Π(1 + λ x) worth, the mean over several λ
is the e-value. If no next difference is above zero in expectation, given those before, the e-value reaches
20 with a probability of at most 1/20, however often one looks (Ville's inequality).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Standing = Literal["on trial", "serves", "retired"]

PROOF = 20.0
"""E-value that decides: one row in twenty that does no good gets there, at most."""

BETS = np.arange(1, 10) / 10
"""Shares λ that are bet, all at once. The best one is near an effect's mean over its mean square, which
nobody knows beforehand: about 0.25 for 50 instead of 40 % right, 0.7 for 60 instead of 20 %, the most there
is for small differences of one sign. The mean is worth at least a ninth of the best. Steps are even, for that
needs no opinion on effects: grids that are denser at either end were within six points of their power, above
and below. 1 itself is left out: one lost bet would end it for good."""

SHARED = 2 / 3
"""Stake on outcomes of two halves that judged each other's training. What chance did to both of them counts
twice, so that the whole stake would be multiplied by twenty too often: in 5.9 % of the worst simulated cases
instead of 5 %, and with this one in 4.2 %."""

_HIGHEST = float(np.log(np.finfo(np.float64).max))


@dataclass(frozen=True)
class Evidence:
    """What is known of answering with a row instead of its baseline."""

    n: int
    """Outcomes that counted: those after a retirement do not."""
    mean: float
    """Their mean difference, in [-1, 1]; 0 of none."""
    e_value: float
    """That the row does good; nothing is known at 1, or at the stake."""
    e_against: float
    """That the row does harm, from where it began to serve, or else from the start."""
    standing: Standing


def weigh(differences: Iterable[float], *, stake: float = 1.0) -> Evidence:
    """Return what a row's differences say, (n,) in [-1, 1], one per prompt in order of observation.

    The row is on trial until an e-value, for it or against it, reaches `PROOF`. From where it serves the
    evidence against it begins anew, whole; once that is proof the row is retired for good.

    Args:
        differences: outcome with the row less outcome without it, of each prompt.
        stake: what both e-values begin with, in (0, 1]; less than 1 where the first differences are no fair
            bets, such as `SHARED`.

    Raises:
        ValueError: naming the first difference that is no number in [-1, 1].
    """
    x = np.fromiter(differences, dtype=np.float64)
    refused = np.flatnonzero(~(np.abs(x) <= 1))  # NaN, too
    if len(refused):
        raise ValueError(f"differences[{refused[0]}] is {x[refused[0]]}, expected -1 to 1")
    if not 0 < stake <= 1:
        raise ValueError(f"stake is {stake}, expected more than 0 and at most 1")
    good, harm = _log_e_values(x) + np.log(stake), _log_e_values(-x) + np.log(stake)
    serves, retires = _proven(good), _proven(harm)
    if serves < retires:
        harm = np.concatenate([np.zeros(serves), _log_e_values(-x[serves:])])
        retires = _proven(harm)
    n = min(len(x), retires)
    standing: Standing = "retired" if retires <= n else "serves" if serves <= n else "on trial"
    return Evidence(n, float(x[:n].mean()) if n else 0.0, _exp(good[n]), _exp(harm[n]), standing)


def _log_e_values(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the e-value before any and after each of `x`, (n + 1,)."""
    worth = np.cumsum(np.log1p(np.outer(x, BETS)), axis=0)  # (n, bets)
    mixed = np.logaddexp.reduce(worth, axis=1) - np.log(len(BETS))
    return np.concatenate([[0.0], mixed])


def _proven(log_e_values: NDArray[np.float64]) -> int:
    """Return after how many outcomes there is proof; one more than there are: not yet."""
    reached = np.flatnonzero(log_e_values >= np.log(PROOF))
    return int(reached[0]) if len(reached) else len(log_e_values)


def _exp(log_e_value: float) -> float:
    return float(np.exp(min(log_e_value, _HIGHEST)))
